"""Where the words of each turn stand in a rendered conversation, for all of the same shape.

Whatever the template does between the words, its spans are found and not guessed: the template is
rendered once for each sequence of turns with marks in place of the words.
"""

import re
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from raysft.data.render import Template, as_turn, render
from raysft.data.turns import Conversation, Message, RecordError

# What stands for words while a layout is made: private-use characters around its
# number, between spaces of a kind that only a template's own trimming would remove.
SPACE = "\u2003"
MARK = re.compile(f"({SPACE}?)\ue000(\\d+)\ue001({SPACE}?)")

# What to do about a template that does not fit the records.
WAYS_OUT = (
    'set data.template to "chatml", "plain" or a Jinja file that writes every answer as it is, or '
    'train only what it keeps: data.train_on = "last_turn", or data.on_bad_record = "skip"'
)


class Piece(NamedTuple):
    """A part of a layout: markup, or the place of a turn's words or of its thought."""

    text: str  # of markup
    words: int | None  # the number of the words that go here
    answer: int | None  # the assistant turn that this is generated with, if any
    trim: tuple[bool, bool] = (False, False)  # whether the template strips the words' two ends


Shape = tuple[tuple[str, bool], ...]  # of each turn its role, and whether it has a thought


def shape_of(conversation: Conversation) -> Shape:
    return tuple((message.role, bool(message.reasoning)) for message in conversation)


def words_of(conversation: Conversation) -> list[str]:
    """By number of their mark: 2i are the words of turn i, 2i + 1 its thought."""
    return [text for message in conversation for text in (message.content, message.reasoning)]


@lru_cache(maxsize=4096)
def layout(template: Template, shape: Shape) -> tuple[Piece, ...]:
    """The pieces of every conversation of this shape.

    An answer reaches from the end of the prompt that would be generated from (so words that the
    template puts before the answer are learnt, as they must be generated) to the first special
    token after its words.

    Raises RecordError where the template has no such place, or leaves out words.
    """
    full = marked(template, shape)
    places = {int(found[2]): found.span() for found in MARK.finditer(full)}
    for index, (role, has_thought) in enumerate(shape):
        if 2 * index not in places or (has_thought and 2 * index + 1 not in places):
            raise RecordError(f"the template {template.name!r} leaves out {role} turns")
    borders: dict[int, tuple[int, int]] = {}  # assistant turn -> where its answer begins and ends
    for index, (role, _) in enumerate(shape):
        if role != "assistant":
            continue
        prompt = marked(template, shape[:index], answer_next=True) if index else ""
        if not full.startswith(prompt):
            raise other_prompt(template, index, prompt, full)
        own = [places[number] for number in (2 * index, 2 * index + 1) if number in places]
        words_end = max(end for _, end in own)
        alone = marked(template, shape[: index + 1])
        limit = len(alone) if full.startswith(alone) else len(full)
        closing = template.special.search(full, words_end, limit)
        begin = len(prompt) if index else min(own)[0]
        borders[index] = (begin, closing.end() if closing else words_end)
    return tuple(cut_at_marks(full, borders))


def other_prompt(template: Template, index: int, prompt: str, full: str) -> RecordError:
    pairs = enumerate(zip(prompt, full, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(full)))
    return RecordError(
        f"the template {template.name!r} writes turn {index + 1} after another prompt than it "
        "would be generated from",
        f" (that goes on with {MARK.sub('...', prompt[same : same + 60])!r}, a finished "
        f"conversation with {MARK.sub('...', full[same : same + 60])!r}); {WAYS_OUT}",
    )


def mark(index: int) -> str:
    return f"{SPACE}\ue000{index}\ue001{SPACE}"


def marked(template: Template, shape: Shape, answer_next: bool = False) -> str:
    conversation = [
        Message(role, mark(2 * index), reasoning=mark(2 * index + 1) if has_thought else "")
        for index, (role, has_thought) in enumerate(shape)
    ]
    return render(template, list(map(as_turn, conversation)), answer_next=answer_next)


def cut_at_marks(text: str, borders: dict[int, tuple[int, int]]) -> list[Piece]:
    """Split at the marks and at the borders of the answers."""
    marks = {found.start(): found for found in MARK.finditer(text)}
    cuts = {0, len(text), *(place for span in borders.values() for place in span)}
    cuts |= {place for found in marks.values() for place in found.span()}
    ordered = sorted(cuts)
    pieces = []
    for begin, end in pairwise(ordered):
        answer = next((i for i, span in borders.items() if span[0] <= begin < span[1]), None)
        if found := marks.get(begin):
            pieces.append(Piece("", int(found[2]), answer, (not found[1], not found[3])))
        else:
            pieces.append(Piece(text[begin:end], None, answer))
    return pieces


def fill(pieces: tuple[Piece, ...], words: list[str]) -> list[str]:
    """The text of each piece."""
    texts = []
    for piece in pieces:
        text = piece.text if piece.words is None else words[piece.words]
        text = text.lstrip() if piece.trim[0] else text
        texts.append(text.rstrip() if piece.trim[1] else text)
    return texts
