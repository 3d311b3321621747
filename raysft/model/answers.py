"""What the finished model says to held-out records."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from raysft.config.schema import Config
from raysft.data.batch import parts_of
from raysft.data.dataset import TokenDataset
from raysft.data.template import Template
from raysft.model.generate import BATCH_SIZE, answer
from raysft.runs import events
from raysft.runs.events import Emit

MAX_NEW_TOKENS = 256
ANSWERING = "writing answers to held-out records"  # the status while it lasts


class Question(NamedTuple):
    """A held-out record as the model meets it: all before its last answer, and that answer."""

    prompt_ids: list[int]
    answer_ids: list[int]


class Answered(NamedTuple):
    """A question in words, without special tokens and white space around."""

    prompt: str
    reference: str
    answer: str


# Of some questions, and the tokens of the longest reference among all of them.
Answering = Callable[[list[Question], int], list[Answered]]


def questions(heldout: TokenDataset, count: int) -> list[Question]:
    """The first `count` held-out records that ask something."""
    result: list[Question] = []
    for index in range(len(heldout)):
        ids, mask = parts_of(heldout, index)[0]  # of a pair, the chosen one
        begin = int(np.flatnonzero(~mask)[-1]) + 1 if not mask.all() else 0
        if begin and len(result) < count:
            result.append(Question(ids[:begin].tolist(), ids[begin:].tolist()))
    return result


def answered(
    model: Any, template: Template, asked: list[Question], longest: int | None = None
) -> list[Answered]:
    """Greedy answers, a little longer than the longest reference at most, or than `longest`."""

    def words(ids: list[int]) -> str:
        return str(template.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    longest = longest or max(len(question.answer_ids) for question in asked)
    prompts = [question.prompt_ids for question in asked]
    answers = answer(model, template, prompts, min(longest + 8, MAX_NEW_TOKENS))
    return [
        Answered(words(question.prompt_ids), words(question.answer_ids), text.strip())
        for question, text in zip(asked, answers, strict=True)
    ]


def share_of_answers(
    asked: list[Question], answer_some: Answering, rank: int, world_size: int
) -> dict[int, Answered]:
    """By its number each question that this rank answers.

    Ranks take whole batches in turn, so that what is answered together does not depend on how many
    there are.
    """
    batches = [range(len(asked))[begin : begin + BATCH_SIZE]
               for begin in range(0, len(asked), BATCH_SIZE)]  # fmt: skip
    mine = [index for batch in batches[rank::world_size] for index in batch]
    if not mine:
        return {}
    longest = max(len(question.answer_ids) for question in asked)
    found = answer_some([asked[index] for index in mine], longest)
    return dict(zip(mine, found, strict=True))


def judged(found: list[Answered], config: Config, emit: Emit) -> dict[str, Any]:
    """`exact_match`: the share of answers equal to their reference; some are told as samples."""
    for one in found[: config.run.samples]:
        emit(events.Sample(one.prompt, one.reference, one.answer))
    checked = found[: config.eval.exact_match_records]
    hits = sum(one.answer == one.reference for one in checked)
    return {
        "exact_match": hits / len(checked) if checked else None,
        "exact_match_records": len(checked),
    }
