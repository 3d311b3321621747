"""What is kept of an encoded record, or of a pair of them: its tokens, and a row of facts."""

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysft.data.encoding import unwritten_in
from raysft.data.template import Segment, Template
from raysft.data.tokenize import Example, pair_windows, window
from raysft.data.turns import Conversation, NothingToLearn, is_blank, texts_of

# What is known of each record that is kept; lengths in tokens. A pair is one record: the chosen
# conversation, and the rejected one after it.
RECORD = np.dtype(
    [
        ("length", "i4"),  # as kept
        ("supervised", "i4"),  # trained predictions as kept: the first token has none
        ("full_length", "i4"),  # before any cut, as are the next three; of a pair, the longer half
        ("lead", "i4"),  # before the first answer
        ("first_end", "i4"),  # up to the end of the first answer
        ("answers", "i4"),  # supervised tokens; of a pair, those of the chosen answer
        ("ended", "?"),  # the last answer kept has its end token; in a pair, both have
        ("space_before_answer", "?"),
        ("special_in_text", "?"),
        ("unwritten", "?"),  # some of its characters, by this tokenizer
        ("empty_answer", "?"),  # among others, and not trained
        ("blank_prompt", "?"),
        ("unanswered", "?"),  # turns after the last answer, which are left out
        ("key", "u8"),  # equal for equal texts
        ("source", "u2"),  # index in the mixture
        # Of pairs only.
        ("chosen", "i4"),  # tokens of the chosen conversation, as kept
        ("rejected_answer", "i4"),  # tokens of the rejected answer, before any cut
        ("margin", "f4"),  # by how much its scores say that the chosen answer is better
        ("prefix", "?"),  # one answer goes on where the other ends
        ("chosen_key", "u8"),  # equal for equal prompts and answers
        ("rejected_key", "u8"),
    ]
)
NAMES = RECORD.names or ()
OF_NO_PAIR = (0, 0, 0.0, False, 0, 0)  # the last six
TOO_LONG = "longer than batch.seq_len"


class Draft(NamedTuple):
    """A conversation on its way from text to tokens."""

    conversation: Conversation
    segments: list[Segment]
    margin: float = 0.0  # of the pair that it is half of
    where: str = ""


class Row(NamedTuple):
    facts: tuple[Any, ...]  # one of RECORD
    input_ids: NDArray[np.int32]  # [length]
    loss_mask: NDArray[np.bool_]  # [length]
    unwritten: list[str]  # characters that the tokenizer cannot write


@dataclass(frozen=True)
class Recipe:
    """All that decides what becomes of a raw record."""

    template: Template
    formats: tuple[str, ...]  # of each source
    fields: tuple[dict[str, str], ...]
    seq_len: int
    truncate: bool
    last_turn_only: bool
    pairs: bool = False  # each record is two conversations of one prompt: see pairs.py


def single_row(drafts: list[Draft], examples: list[Example], recipe: Recipe, source: int) -> Row:
    """Raises NothingToLearn where nothing of the record is kept."""
    (draft,), (example,) = drafts, examples
    begin, end = window(example, recipe.seq_len)
    if not recipe.truncate and len(example.input_ids) > recipe.seq_len:
        raise NothingToLearn(TOO_LONG)
    lost = lost_in(draft, recipe.template)
    facts = describe(example, (begin, end), draft, recipe.template)
    if not facts["supervised"]:
        raise NothingToLearn("no supervised token within batch.seq_len")
    facts |= {"unwritten": bool(lost), "key": key_of(draft.segments), "source": source}
    row = (*(facts[name] for name in NAMES[: -len(OF_NO_PAIR)]), *OF_NO_PAIR)
    return Row(row, example.input_ids[begin:end], example.loss_mask[begin:end], lost)


def pair_row(drafts: list[Draft], examples: list[Example], recipe: Recipe, source: int) -> Row:
    """Both halves keep the same tokens of the prompt, and as many of their answers as have room.

    Raises NothingToLearn where the pair tells nothing apart.
    """
    prompts = [example.input_ids[: example.answers[0][0]] for example in examples]
    if not np.array_equal(prompts[0], prompts[1]):
        raise NothingToLearn("the template writes another prompt before each of the two answers")
    if not recipe.truncate and max(len(e.input_ids) for e in examples) > recipe.seq_len:
        raise NothingToLearn(TOO_LONG)
    kept = pair_windows(examples, recipe.seq_len)
    ids = [example.input_ids[b:e] for example, (b, e) in zip(examples, kept, strict=True)]
    if np.array_equal(ids[0], ids[1]):
        raise NothingToLearn("both answers are the same within batch.seq_len")
    template = recipe.template
    one, other = (
        describe(example, span, draft, template)
        for example, span, draft in zip(examples, kept, drafts, strict=True)
    )
    lost = list(Counter(letter for draft in drafts for letter in lost_in(draft, template)))
    keys = [key_of(draft.segments) for draft in drafts]
    facts = {name: one[name] or other[name] for name in one}  # flags: of either
    facts |= {name: one[name] + other[name] for name in ("length", "supervised")}
    facts |= {name: max(one[name], other[name]) for name in ("full_length", "first_end")}
    facts |= {"answers": one["answers"], "ended": one["ended"] and other["ended"]}
    facts |= {"unwritten": bool(lost), "source": source, "chosen": one["length"]}
    facts |= {"key": key_of([*drafts[0].segments, *drafts[1].segments])}
    facts |= {"rejected_answer": other["answers"], "margin": drafts[0].margin}
    facts |= {"chosen_key": keys[0], "rejected_key": keys[1], "prefix": is_prefix(drafts)}
    masks = [example.loss_mask[b:e] for example, (b, e) in zip(examples, kept, strict=True)]
    row = tuple(facts[name] for name in NAMES)
    return Row(row, np.concatenate(ids), np.concatenate(masks), lost)


def is_prefix(drafts: list[Draft]) -> bool:
    chosen, rejected = (draft.conversation[-1].content.strip() for draft in drafts)
    return chosen.startswith(rejected) or rejected.startswith(chosen)


def lost_in(draft: Draft, template: Template) -> list[str]:
    words = "".join(text for message in draft.conversation for text in texts_of(message))
    return unwritten_in(template, words)


def describe(
    example: Example, kept: tuple[int, int], draft: Draft, template: Template
) -> dict[str, Any]:
    """What the tokens [begin, end) of a conversation are, by names of RECORD."""
    begin, end = kept
    prompts = [s for s in draft.segments if not s.supervised]
    words = [text for message in draft.conversation for text in texts_of(message)]
    questions = [m.content for m in draft.conversation if m.role == "user"]
    return {
        "length": end - begin,
        "supervised": int(example.loss_mask[begin + 1 : end].sum()),
        "full_length": len(example.input_ids),
        "lead": example.answers[0][0],
        "first_end": example.answers[0][1],
        "answers": int(example.loss_mask.sum()),
        "ended": any(answer_end == end for _, answer_end in example.answers),
        "space_before_answer": ends_in_space(draft.segments),
        "special_in_text": any(template.special.search(text) for text in words),
        "empty_answer": any(m.role == "assistant" and is_blank(m) for m in draft.conversation),
        "blank_prompt": bool(prompts) and not any(text.strip() for text in questions),
        "unanswered": draft.conversation[-1].role not in ("assistant", "text"),
    }


def ends_in_space(segments: list[Segment]) -> bool:
    """A prompt's last character is a space, which GPT-2's BPE would join to the answer's word."""
    return any(
        after.supervised and not before.supervised and before.text[-1:] in (" ", "\t")
        for before, after in pairwise(segments)
    )


def key_of(segments: list[Segment]) -> int:
    digest = blake2b(digest_size=8)
    for segment in segments:
        digest.update(segment.text.encode() + b"\0")
    return int.from_bytes(digest.digest(), "little")
