"""A conversation with a model: its turns, and the keys and values of what it has read already."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from raysft.data.probe import takes_turns
from raysft.data.prompts import with_system
from raysft.data.template import Template
from raysft.data.turns import Conversation, Message
from raysft.model.generate import How, as_answer, encoded, end_tokens, generate_ids, positions_of


class Reply(NamedTuple):
    text: str
    finish: str  # "stop", "length", or "interrupted"
    tokens: int
    reused: int  # tokens of the prompt that were in the cache
    left_out: int  # earlier questions that found no room any more


class Talk:
    """Turns so far, each question with its answer."""

    def __init__(self, model: Any, template: Template, how: How, system: str | None) -> None:
        """Raises UserError where the template takes no system turn, and one is given."""
        self.model, self.template, self.how, self.system = model, template, how, system
        self.takes_turns = takes_turns(template)
        self.positions = positions_of(model)
        self.turns: Conversation = []
        self.prompt([Message("user", "?")], "--system")
        self.forget()

    def reset(self) -> None:
        self.turns = []

    def forget(self) -> None:
        """What the cache holds, as after a step that broke off in it."""
        self.cache: Any = None
        self.cached: list[int] = []

    def ask(self, text: str, write: Callable[[str], None], stopped: Callable[[], bool]) -> Reply:
        """Generate the answer; question and answer become turns.

        Raises UserError where the question alone has no room.
        """
        earlier, ids = self.fitting(Message("user", text))
        cache, reused = self.reusable(ids)
        self.forget()  # unless all goes well
        made, cache = generate_ids(
            self.model, self.template, [ids], self.how, write=write, stopped=stopped, cache=cache
        )
        tokens = made[0]
        if cache is not None:
            self.cache, self.cached = cache, [*ids, *tokens][: cache.get_seq_length()]
        answer = as_answer(self.model, self.template, tokens, self.how)
        left_out = (len(self.turns) - len(earlier)) // 2 if self.takes_turns else 0
        self.turns = [*earlier, Message("user", text), Message("assistant", self.whole(tokens))]
        finish = "interrupted" if answer.finish == "length" and stopped() else answer.finish
        return Reply(answer.text, finish, len(tokens), reused, left_out)

    def whole(self, tokens: Sequence[int]) -> str:
        """With white space around it, so that the next prompt goes on from what was generated."""
        from raysft.model.streaming import text_of

        ends = end_tokens(self.model, self.template)
        return text_of(self.template.tokenizer, tokens, ends, self.how.stop)

    def fitting(self, question: Message) -> tuple[Conversation, list[int]]:
        """The newest turns that leave room for an answer, and the prompt's ids [T] with them."""
        earlier = self.turns if self.takes_turns else []
        room = min(self.how.max_new_tokens, self.positions // 4)
        while earlier:
            ids = self.prompt([*earlier, question], None)
            if len(ids) + room <= self.positions:
                return earlier, ids
            earlier = earlier[2:]
        return [], self.prompt([question], "the question")

    def prompt(self, turns: Conversation, place: str | None) -> list[int]:
        """place: for errors; None where there may be too many tokens."""
        positions = 10**9 if place is None else self.positions
        return encoded(
            self.template, with_system(turns, self.system), place or "the turns", positions
        )

    def reusable(self, ids: list[int]) -> tuple[Any, int]:
        """The cache cut to what it has in common with the ids, and how much that is; else none.

        One that keeps a window of the last tokens, or a state, cannot go back.
        """
        from transformers.cache_utils import DynamicLayer

        pairs = zip(self.cached, ids[:-1], strict=False)  # the last one gives the first new token
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
        same = min(len(self.cached), len(ids) - 1) if same is None else same
        if self.cache is None or not same:
            return None, 0
        if same < len(self.cached):
            if any(type(layer) is not DynamicLayer for layer in self.cache.layers):
                return None, 0
            self.cache.crop(same - len(self.cached))
        return self.cache, same
