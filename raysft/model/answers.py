"""What the finished model says to held-out records."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.model.generate import answer, load
from raysft.runs import events
from raysft.runs.events import Emit

MAX_NEW_TOKENS = 256


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


def answer_heldout(
    config: Config, model_dir: Path, heldout: TokenDataset, emit: Emit
) -> dict[str, Any]:
    """Load the exported folder and let it answer.

    Answering from the folder, not from the engine, shows that what was exported is what was
    trained. Returns `exact_match`: the share of held-out answers equal to their reference.
    """
    asked = questions(heldout, max(config.run.samples, config.eval.exact_match_records))
    if not asked:
        return {"exact_match": None, "exact_match_records": 0}
    started = time.monotonic()
    model, template = load(str(model_dir))

    def words(ids: list[int]) -> str:
        return str(template.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    references = [words(question.answer_ids) for question in asked]
    longest = max(len(question.answer_ids) for question in asked)
    prompts = [question.prompt_ids for question in asked]
    answers = answer(model, template, prompts, min(longest + 8, MAX_NEW_TOKENS))
    for index in range(min(config.run.samples, len(asked))):
        emit(events.Sample(words(prompts[index]), references[index], answers[index].strip()))
    checked = min(config.eval.exact_match_records, len(asked))
    hits = [a.strip() == r for a, r in zip(answers[:checked], references[:checked], strict=True)]
    return {
        "exact_match": sum(hits) / checked if checked else None,
        "exact_match_records": checked,
        "answer_time_s": round(time.monotonic() - started, 2),
    }
