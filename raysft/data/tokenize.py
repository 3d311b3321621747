"""Segments to token ids and a loss mask: the only place that masks."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysft.data.encoding import (
    Special,
    Stretch,
    encode_texts,
    habits_of,
    needed,
    stretch_ids,
    stretches,
)
from raysft.data.template import Segment, Template


class Example(NamedTuple):
    """A whole conversation of T tokens, before any cut."""

    input_ids: NDArray[np.int32]  # [T]
    loss_mask: NDArray[np.bool_]  # [T], true at the tokens whose prediction is trained
    answers: list[tuple[int, int]]  # [begin, end) of each supervised span


class Window(NamedTuple):
    """The tokens [begin, end) of a conversation that are kept at some `seq_len`."""

    begin: int
    end: int


def encode(template: Template, conversations: Sequence[Sequence[Segment]]) -> Iterator[Example]:
    """Token ids and mask of every conversation.

    The tokens before an answer are those that transformers makes of the prompt that it is generated
    from, and the answer goes on from them. Special tokens come from markup only: text that spells
    one stays text. What follows the last answer is left out, for it trains nothing.
    """
    groups = [list(stretches(template, conversation)) for conversation in conversations]
    for runs in encode_groups(template, groups):
        ids = [token for piece, _ in runs for token in piece]
        answers = spans([(len(piece), supervised) for piece, supervised in runs])
        end = answers[-1][1] if answers else len(ids)
        mask = np.repeat([flag for _, flag in runs], [len(piece) for piece, _ in runs])
        yield Example(np.asarray(ids[:end], dtype=np.int32), mask[:end].astype(np.bool_), answers)


Run = tuple[Sequence[int], bool]  # token ids, supervised or not


def encode_groups(
    template: Template, groups: Sequence[Sequence[Special | Stretch]]
) -> Iterator[list[Run]]:
    """The runs of each group, of whose texts each is encoded once, in one batched call."""
    habits = habits_of(template)
    texts = {
        text: None
        for group in groups
        for part in group
        if isinstance(part, Stretch)
        for text in needed(part, habits)
    }
    known = dict(zip(texts, encode_texts(template.tokenizer, list(texts)), strict=True))

    def ids_of(text: str) -> list[int]:
        if text not in known:
            (known[text],) = encode_texts(template.tokenizer, [text])
        return known[text]

    for group in groups:
        runs: list[Run] = []
        for part in group:
            if isinstance(part, Special):
                runs.append(((part.id,), part.supervised))
            else:
                flags = [span.supervised for span in part.spans]
                runs += zip(stretch_ids(part, habits, ids_of), flags, strict=True)
        yield runs


def encode_prompt(template: Template, segments: Sequence[Segment]) -> list[int]:
    """Token ids [T] to generate from, equal to the tokens before the answer in `encode`."""
    (runs,) = encode_groups(template, [list(stretches(template, segments))])
    return [token for ids, _ in runs for token in ids]


def spans(runs: Sequence[tuple[int, bool]]) -> list[tuple[int, int]]:
    """[begin, end) of the supervised runs, those that touch as one."""
    result: list[tuple[int, int]] = []
    position = 0
    for length, supervised in runs:
        if supervised and result and result[-1][1] == position:
            result[-1] = (result[-1][0], position + length)
        elif supervised and length:
            result.append((position, position + length))
        position += length
    return result


def window(example: Example, seq_len: int) -> Window:
    """What to keep of a conversation longer than `seq_len`; see `cuts`."""
    begin, first_end = example.answers[0]
    prompt_cut, response_cut = cuts(len(example.input_ids), begin, first_end, seq_len)
    end = len(example.input_ids) - int(response_cut)
    if response_cut:  # the cut may fall into a prompt, which would train nothing
        end = max(min(answer_end, end) for answer_begin, answer_end in example.answers
                  if answer_begin < end)  # fmt: skip
    return Window(int(prompt_cut), end)


def pair_windows(examples: Sequence[Example], seq_len: int) -> list[Window]:
    """What to keep of two conversations that differ in their last turn alone: of both the same
    prompt, which loses what the longer answer needs, and as much of the answers as has room."""
    lengths = [len(example.input_ids) for example in examples]
    begin = int(cuts(max(lengths), examples[0].answers[0][0], max(lengths), seq_len)[0])
    return [Window(begin, min(length, begin + seq_len)) for length in lengths]


def cuts(length: Any, lead: Any, first_end: Any, seq_len: int) -> tuple[Any, Any]:
    """Prompt and later tokens that do not fit; numbers, or arrays of them for many records.

    `lead` tokens come before the first answer, which ends at `first_end` of `length` tokens. The
    first prompt loses as much of its start as makes that answer whole, then the conversation its
    end. Where the answer is too long by itself, the prompt keeps up to half of the room: an answer
    that is cut anyway should not lose its question too.
    """
    answer = first_end - lead
    room = np.where(answer < seq_len, seq_len - answer, seq_len // 2)
    prompt_cut = np.maximum(lead - room, 0)
    return prompt_cut, np.maximum(length - prompt_cut - seq_len, 0)
