"""What the finished model says to held-out records, and its model card."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.data.template import Template
from raysft.model.generate import answer, load
from raysft.runs import events
from raysft.runs.events import Emit

MAX_NEW_TOKENS = 256


class Question(NamedTuple):
    """A held-out record as the model meets it: all before its last answer, and that answer."""

    prompt_ids: list[int]
    answer_ids: list[int]


class Answered(NamedTuple):
    """A question in words, without special tokens and white space around."""

    prompt: str
    reference: str
    answer: str


def questions(heldout: TokenDataset, count: int) -> list[Question]:
    """The first `count` held-out records that ask something."""
    result: list[Question] = []
    for index in range(len(heldout)):
        ids, mask = heldout.tokens(index), heldout.mask(index)
        begin = int(np.flatnonzero(~mask)[-1]) + 1 if not mask.all() else 0
        if begin and len(result) < count:
            result.append(Question(ids[:begin].tolist(), ids[begin:].tolist()))
    return result


def finish_model(
    config: Config, model_dir: Path, heldout: TokenDataset, emit: Emit
) -> dict[str, Any]:
    """Write the card into the exported folder, then load it and let it answer.

    Answering from the folder, not from the engine, shows that what was exported is what was
    trained. Returns `exact_match`: the share of held-out answers equal to their reference.
    """
    write_card(config, model_dir)
    asked = questions(heldout, max(config.run.samples, config.eval.exact_match_records))
    if not asked:
        return {"exact_match": None, "exact_match_records": 0}
    started = time.monotonic()
    found = answered(*load(str(model_dir)), asked)
    for one in found[: config.run.samples]:
        emit(events.Sample(one.prompt, one.reference, one.answer))
    checked = min(config.eval.exact_match_records, len(asked))
    hits = sum(one.answer == one.reference for one in found[:checked])
    return {
        "exact_match": hits / checked if checked else None,
        "exact_match_records": checked,
        "answer_time_s": round(time.monotonic() - started, 2),
    }


def answered(model: Any, template: Template, asked: list[Question]) -> list[Answered]:
    """Greedy answers, a little longer than the longest reference at most."""

    def words(ids: list[int]) -> str:
        return str(template.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    longest = max(len(question.answer_ids) for question in asked)
    prompts = [question.prompt_ids for question in asked]
    answers = answer(model, template, prompts, min(longest + 8, MAX_NEW_TOKENS))
    return [
        Answered(words(question.prompt_ids), words(question.answer_ids), text.strip())
        for question, text in zip(asked, answers, strict=True)
    ]


def trained_on(prompt_weight: float) -> str:
    if 0 < prompt_weight < 1:
        return f"all tokens, those outside the answers with weight {prompt_weight:g}"
    return "all tokens" if prompt_weight else "response tokens only"


def write_card(config: Config, model_dir: Path) -> None:
    base = config.model.path if config.model.init == "pretrained" else "none (from scratch)"
    (model_dir / "README.md").write_text(
        f"""# {config.run.name}

Trained by raysft: supervised fine-tuning with the loss on {
            trained_on(config.data.prompt_loss_weight)
        }.

| | |
|---|---|
| base model | {base} |
| data | {config.data.path} |
| prompt template | {config.data.template} |
| sequence length | {config.batch.seq_len} tokens |
| learning rate | {config.optim.lr:g}, {config.optim.name} |
| precision | {config.engine.precision} |

Losses, hardware and versions are in the run's `summary.json`. Ask it with
`raysft generate FOLDER "instruction"`, or load it with `AutoModelForCausalLM.from_pretrained`.
"""
    )
