"""Where the answers of one rendered conversation begin and end.

This is for what no layout tells: turns with calls, thoughts and tools, and templates that look into
the words. An answer begins where the prompt ends that it would be generated from. Where it ends is
seen by what follows its words when marks stand in their place.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from raysft.data.layout import MARK, WAYS_OUT, mark, other_prompt
from raysft.data.probe import turns_left_out
from raysft.data.render import (
    SHIELD,
    Template,
    Turn,
    as_turn,
    mapped,
    render,
    shielded,
    shown,
)
from raysft.data.turns import Conversation, Message, RecordError


class Rendered(NamedTuple):
    """A conversation as text, its special tokens that are words still between shields."""

    template: Template
    turns: list[Turn]
    tools: list[Any] | None
    text: str


def rendered(
    template: Template, conversation: Conversation, tools: list[Any] | None, *, answer_next: bool
) -> Rendered:
    """Raises RecordError where the template refuses."""
    turns = [shielded(template, as_turn(message)) for message in conversation]
    tools = shielded(template, tools)
    text = render(template, turns, tools, answer_next=answer_next)
    return Rendered(template, turns, tools, text)


def answer_spans(
    whole: Rendered, conversation: Conversation, trained: Iterable[int]
) -> dict[int, tuple[int, int]]:
    """[begin, end) in the text of each trained answer.

    Raises RecordError where the template leaves out a turn, or some of what would be trained.
    """
    require_all_turns(whole, conversation)
    spans = {}
    for index in trained:
        begin, end = span_of(whole, index)
        require_all_words(whole, conversation[index], index, whole.text[begin:end])
        spans[index] = (begin, end)
    return spans


def span_of(whole: Rendered, index: int) -> tuple[int, int]:
    template, turns, tools, text = whole
    turn, words = with_marks(turns[index])
    changed = render(template, [*turns[:index], turn, *turns[index + 1 :]], tools)
    places = first_places(changed)
    for number, (what, _) in enumerate(words):
        if number not in places:
            raise left_out(template, index, what)
    begin, end = min(places.values())[0], max(end for _, end in places.values())
    # gpt-oss writes the name of a function once more in the turn of its result.
    after = MARK.sub(lambda found: words[int(found[2])].text, changed[end:])
    if not text.endswith(after):
        raise rewritten(template, index, text[-80:], after[-80:])
    words_end = len(text) - len(after)
    if not index:
        return begin, end_of_answer(whole, index, words_end)
    prompt = render(template, turns[:index], tools, answer_next=True)
    if not text.startswith(prompt):
        raise other_prompt(template, index, shown(prompt), shown(text))
    return len(prompt), end_of_answer(whole, index, max(len(prompt), words_end))


def first_places(text: str) -> dict[int, tuple[int, int]]:
    """Where each mark is, or the first of several."""
    return {int(found[2]): found.span() for found in reversed(list(MARK.finditer(text)))}


def end_of_answer(whole: Rendered, index: int, words_end: int) -> int:
    """The end of the special token that closes the turn whose words end at `words_end`.

    Of several (DeepSeek closes each call, all calls and the turn) it is the template's end of a
    turn, or the last. Where the turn would end otherwise if it were the last one, it is the first.
    """
    template, turns, tools, text = whole
    last = index + 1 == len(turns)
    alone = text if last else render(template, turns[: index + 1], tools)
    as_alone = text.startswith(alone)
    limit = len(alone) if as_alone else len(text)
    ends = list(template.special.finditer(text, words_end, limit))
    if not ends:
        return limit if as_alone else words_end
    closing = [end for end in ends if end[0] == template.end_token]
    chosen = closing[0] if closing and as_alone else ends[-1] if as_alone else ends[0]
    return chosen.end()


class Words(NamedTuple):
    """What a mark stands for."""

    what: str
    text: str


def with_marks(turn: Turn) -> tuple[Turn, list[Words]]:
    """The turn with a mark in place of its words, its thought, and each text of its calls."""
    words: list[Words] = []

    def marked(what: str, value: Any) -> Any:
        def one(text: str) -> str:
            words.append(Words(what, text))
            return mark(len(words) - 1)

        return mapped(value, one)

    changed = dict(turn)
    if turn["content"].strip() or not turn.keys() & {"reasoning_content", "tool_calls"}:
        changed["content"] = marked("words", turn["content"])
    if "reasoning_content" in turn:
        changed["reasoning_content"] = marked("thought", turn["reasoning_content"])
        changed["thinking"] = changed["reasoning_content"]
    if "tool_calls" in turn:
        said = [call["function"] for call in turn["tool_calls"]]
        called = [
            function | {key: marked("call", function[key]) for key in ("name", "arguments")}
            for function in said
        ]
        pairs = zip(turn["tool_calls"], called, strict=True)
        changed["tool_calls"] = [call | {"function": function} for call, function in pairs]
    return changed, words


def require_all_turns(whole: Rendered, conversation: Conversation) -> None:
    """No turn with words is left out. What a template does to the words of a prompt is its own."""
    kinds = tuple((turn["role"], "tool_calls" in turn) for turn in whole.turns)
    missing = turns_left_out(whole.template, kinds, whole.tools is not None)
    for index, message in enumerate(conversation):
        if index in missing and message.content.strip() and not message.calls:
            raise RecordError(
                f"the template {whole.template.name!r} leaves out {message.role} turns"
            )


def require_all_words(whole: Rendered, message: Message, index: int, answer: str) -> None:
    """What is supervised is what the record says, white space aside."""
    written = squashed(answer)
    for words in (message.reasoning, message.content):
        if squashed(words) not in written:
            raise rewritten(whole.template, index, words, shown(answer))


def squashed(text: str) -> str:
    return "".join(SHIELD.sub(r"\1", text).split())


def left_out(template: Template, index: int, what: str) -> RecordError:
    return RecordError(
        f"the template {template.name!r} leaves out the {what} of an answer that would be trained",
        f" (turn {index + 1}); {WAYS_OUT}",
    )


def rewritten(template: Template, index: int, words: str, instead: str) -> RecordError:
    def short(text: str) -> str:
        return repr(text if len(text) < 80 else text[:40] + " ... " + text[-40:])

    return RecordError(
        f"the template {template.name!r} rewrites the words of an answer that would be trained",
        f" (turn {index + 1}: {short(words)} becomes {short(instead)}); {WAYS_OUT}",
    )
