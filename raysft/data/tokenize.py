"""Segments to token ids and a loss mask: the only place that masks."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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

    No token spans the border of prompt and answer. Special tokens come from markup only: text
    that spells one stays text. What follows the last answer is left out, for it trains nothing.
    """
    groups = [list(parts(template, conversation)) for conversation in conversations]
    encoded = encode_parts(template.tokenizer, [part for group in groups for part in group])
    for group in groups:
        ids: list[int] = []
        runs: list[tuple[int, bool]] = []
        for part in group:
            piece = next(encoded)
            ids += piece
            runs.append((len(piece), part.supervised))
        answers = spans(runs)
        end = answers[-1][1] if answers else len(ids)
        mask = np.repeat([flag for _, flag in runs], [length for length, _ in runs])
        yield Example(np.asarray(ids[:end], dtype=np.int32), mask[:end].astype(np.bool_), answers)


def parts(template: Template, segments: Sequence[Segment]) -> Iterator[Segment]:
    """What to encode at once: a prompt as a whole, as chat templates are encoded elsewhere.

    Its segments stay apart where its text spells a special token, and so do those of an answer.
    """
    run: list[Segment] = []

    def flush() -> Iterator[Segment]:
        if any(not s.markup and template.special.search(s.text) for s in run):
            yield from run
        elif run:
            yield Segment("".join(s.text for s in run), supervised=False, markup=True)
        run.clear()

    for segment in segments:
        if segment.supervised:
            yield from flush()
            yield segment
        else:
            run.append(segment)
    yield from flush()


def encode_parts(tokenizer: Any, pieces: Sequence[Segment]) -> Iterator[list[int]]:
    """Ids of each; two batched calls, since a tokenizer reads special tokens always or never."""
    texts: dict[bool, list[str]] = {True: [], False: []}
    for part in pieces:
        texts[part.markup].append(part.text)
    ids = {
        markup: iter(encode_text(tokenizer, some, special_tokens=markup))
        for markup, some in texts.items()
    }
    return (next(ids[part.markup]) for part in pieces)


def encode_text(tokenizer: Any, texts: list[str], *, special_tokens: bool) -> list[list[int]]:
    """Straight from the library below transformers: it takes a quarter less time."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = not special_tokens  # true: they are encoded as other text
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def encode_prompt(template: Template, segments: Sequence[Segment]) -> list[int]:
    """Token ids [T] to generate from, equal to the tokens before the answer in `encode`."""
    pieces = list(parts(template, segments))
    return [token for ids in encode_parts(template.tokenizer, pieces) for token in ids]


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
