"""What the finished model says to held-out records."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.model.generate import BATCH_SIZE, answer, load
from raysft.runs import events
from raysft.runs.events import Emit

MAX_NEW_TOKENS = 256
ANSWERING = "writing answers to held-out records"  # the status while it lasts


class Question(NamedTuple):
    """A held-out record as the model meets it: all before its last answer, and that answer."""

    prompt_ids: list[int]
    answer_ids: list[int]


def questions(heldout: TokenDataset, count: int) -> list[Question]:
    """The first `count` held-out records that ask something."""
    result: list[Question] = []
    for index in range(len(heldout)):
        ids, mask = heldout.tokens(index), heldout.mask(index)
        begin = int(np.flatnonzero(~mask)[-1]) + 1 if not mask.all() else 0
        if begin and len(result) < count:
            result.append(Question(ids[:begin].tolist(), ids[begin:].tolist()))
    return result


def share_of_answers(
    asked: list[Question], model_dir: Path, rank: int, world_size: int
) -> dict[int, str]:
    """By its number the answer to each question of this rank, of the exported folder.

    Ranks take whole batches in turn, so that what is answered together does not depend on how many
    there are.
    """
    batches = [range(len(asked))[begin : begin + BATCH_SIZE]
               for begin in range(0, len(asked), BATCH_SIZE)]  # fmt: skip
    mine = [index for batch in batches[rank::world_size] for index in batch]
    if not mine:
        return {}
    model, template = load(str(model_dir))
    longest = max(len(question.answer_ids) for question in asked)
    prompts = [asked[index].prompt_ids for index in mine]
    answers = answer(model, template, prompts, min(longest + 8, MAX_NEW_TOKENS))
    return {index: text.strip() for index, text in zip(mine, answers, strict=True)}


def judged(
    asked: list[Question], answers: dict[int, str], config: Config, tokenizer: Any, emit: Emit
) -> dict[str, Any]:
    """`exact_match`: the share of answers equal to their reference; some of them as samples."""

    def words(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()

    references = [words(question.answer_ids) for question in asked]
    for index in range(min(config.run.samples, len(asked))):
        emit(events.Sample(words(asked[index].prompt_ids), references[index], answers[index]))
    checked = min(config.eval.exact_match_records, len(asked))
    hits = sum(answers[index] == references[index] for index in range(checked))
    return {
        "exact_match": hits / checked if checked else None,
        "exact_match_records": checked,
    }
