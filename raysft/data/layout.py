"""Where the words of each turn stand in a rendered conversation, for all with the same roles.

Whatever the template does between the words, its spans are found and not guessed: the template is
rendered once for each sequence of roles with marks in place of the words.
"""

import re
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from raysft.data.render import Template, Turn, render
from raysft.data.turns import Conversation, RecordError

# What stands for a message's words while a layout is made: private-use characters around its
# index, between spaces of a kind that only a template's own trimming would remove.
SPACE = "\u2003"
MARK = re.compile(f"({SPACE}?)\ue000(\\d+)\ue001({SPACE}?)")

# What to do about a template that does not fit the records.
WAYS_OUT = (
    'set data.template to "chatml", "plain" or a Jinja file that writes every answer as it is, or '
    'train only what it keeps: data.train_on = "last_turn", or data.on_bad_record = "skip"'
)


class Piece(NamedTuple):
    """A part of a layout: markup, or the place of a message's words."""

    text: str  # of markup
    message: int | None  # whose words go here
    answer: int | None  # the assistant turn that this is generated with, if any
    trim: tuple[bool, bool] = (False, False)  # whether the template strips the words' two ends


@lru_cache(maxsize=4096)
def layout(template: Template, roles: tuple[str, ...]) -> tuple[Piece, ...]:
    """The pieces of every conversation with these roles.

    An answer reaches from the end of the prompt that would be generated from (so words that the
    template puts before the answer are learnt, as they must be generated) to the first special
    token after its words.

    Raises RecordError where the template has no such place, or leaves out a turn.
    """
    full = marked(template, roles)
    places = {int(mark[2]): mark.span() for mark in MARK.finditer(full)}
    for index, role in enumerate(roles):
        if index not in places:
            raise RecordError(f"the template {template.name!r} leaves out {role} turns")
    borders: dict[int, tuple[int, int]] = {}  # assistant turn -> where its answer begins and ends
    for index, role in enumerate(roles):
        if role != "assistant":
            continue
        prompt = marked(template, roles[:index], answer_next=True) if index else ""
        if not full.startswith(prompt):
            raise other_prompt(template, index, prompt, full)
        begin = len(prompt) if index else places[index][0]
        alone = marked(template, roles[: index + 1])
        limit = len(alone) if full.startswith(alone) else len(full)
        end = template.special.search(full, places[index][1], limit)
        borders[index] = (begin, end.end() if end else places[index][1])
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


def marked(
    template: Template, roles: tuple[str, ...] | list[str], answer_next: bool = False
) -> str:
    turns: list[Turn] = [{"role": role, "content": mark(i)} for i, role in enumerate(roles)]
    return render(template, turns, answer_next=answer_next)


def cut_at_marks(text: str, borders: dict[int, tuple[int, int]]) -> list[Piece]:
    """Split at the marks and at the borders of the answers."""
    marks = {mark.start(): mark for mark in MARK.finditer(text)}
    cuts = {0, len(text), *(place for span in borders.values() for place in span)}
    cuts |= {place for mark in marks.values() for place in mark.span()}
    ordered = sorted(cuts)
    pieces = []
    for begin, end in pairwise(ordered):
        answer = next((i for i, span in borders.items() if span[0] <= begin < span[1]), None)
        if mark := marks.get(begin):
            pieces.append(Piece("", int(mark[2]), answer, (not mark[1], not mark[3])))
        else:
            pieces.append(Piece(text[begin:end], None, answer))
    return pieces


def fill(pieces: tuple[Piece, ...], conversation: Conversation) -> list[str]:
    """The text of each piece."""
    texts = []
    for piece in pieces:
        text = piece.text if piece.message is None else conversation[piece.message].content
        text = text.lstrip() if piece.trim[0] else text
        texts.append(text.rstrip() if piece.trim[1] else text)
    return texts
