"""Where the answers of one rendered conversation begin and end.

This is for what no layout tells: turns with calls, thoughts and tools, and templates that look into
the words. An answer begins where the prompt ends that it would be generated from. Where it ends is
seen by what follows its words when marks stand in their place.
"""

from collections.abc import Iterable
from itertools import count
from typing import Any, NamedTuple

from raysft.data.layout import MARK, WAYS_OUT, mark, other_prompt
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
        begin, end = span_of(whole, conversation[index], index)
        require_all_words(whole, conversation[index], index, whole.text[begin:end])
        spans[index] = (begin, end)
    return spans


def span_of(whole: Rendered, message: Message, index: int) -> tuple[int, int]:
    template, turns, tools, text = whole
    marks = count()
    turn = with_marks(turns[index], marks)
    changed = render(template, [*turns[:index], turn, *turns[index + 1 :]], tools)
    found = list(MARK.finditer(changed))
    seen = {int(m[2]) for m in found}
    if len(seen) < next(marks):
        lost = "thought" if message.reasoning and 1 not in seen else "call or its words"
        raise left_out(template, index, lost if found else "words")
    after = changed[found[-1].end() :]
    if not text.endswith(after):
        raise rewritten(template, index, text[-80:], after[-80:])
    if not index:
        return found[0].start(), end_of_answer(whole, index, len(text) - len(after))
    prompt = render(template, turns[:index], tools, answer_next=True)
    if not text.startswith(prompt):
        raise other_prompt(template, index, shown(prompt), shown(text))
    return len(prompt), end_of_answer(whole, index, max(len(prompt), len(text) - len(after)))


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
        return words_end
    closing = [end for end in ends if end[0] == template.end_token]
    chosen = closing[0] if closing and as_alone else ends[-1] if as_alone else ends[0]
    return chosen.end()


def with_marks(turn: Turn, marks: "count[int]") -> Turn:
    """Its words, thought, and the texts of its calls replaced: each by a mark of its own."""
    changed = dict(turn)
    if turn["content"].strip():
        changed["content"] = mark(next(marks))
    if "reasoning_content" in turn:
        changed["reasoning_content"] = changed["thinking"] = mark(next(marks))
    if "tool_calls" in turn:
        calls = []
        for call in turn["tool_calls"]:
            function = {"name": mark(next(marks)), "arguments": call["function"]["arguments"]}
            function["arguments"] = mapped(function["arguments"], lambda _: mark(next(marks)))
            calls.append(call | {"function": call["function"] | function})
        changed["tool_calls"] = calls
    return changed


def require_all_turns(whole: Rendered, conversation: Conversation) -> None:
    """No turn with words is left out. What a template does to the words of a prompt is its own."""
    marks = [mark(index) for index in range(len(conversation))]
    turns = [turn | {"content": mark} for turn, mark in zip(whole.turns, marks, strict=True)]
    try:
        text = render(whole.template, turns, whole.tools)
    except RecordError:  # it expects words of some kind
        return
    seen = {int(found[2]) for found in MARK.finditer(text)}
    for index, message in enumerate(conversation):
        if index not in seen and message.content.strip() and not message.calls:
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
