"""What the finished model says to held-out records, and its model card."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raysft.config.schema import Config
from raysft.data.batch import parts_of
from raysft.data.dataset import TokenDataset
from raysft.model.generate import answer, load
from raysft.runs import events
from raysft.runs.events import Emit

MAX_NEW_TOKENS = 256
# How an exported model is used, in its card.
ASK = """Ask it with
`raysft generate FOLDER "instruction"`, or load it with `AutoModelForCausalLM.from_pretrained`."""
SCORE = """Load it with
`AutoModelForSequenceClassification.from_pretrained`: its one logit is the reward of a conversation
that ends as in training, with the token that ends the answer. Pad with the tokenizer's pad token,
which is none of the text's."""


class Question(NamedTuple):
    """A held-out record as the model meets it: all before its last answer, and that answer."""

    prompt_ids: list[int]
    answer_ids: list[int]


def questions(heldout: TokenDataset, count: int) -> list[Question]:
    """The first `count` held-out records that ask something."""
    result: list[Question] = []
    for index in range(len(heldout)):
        ids, mask = parts_of(heldout, index)[0]  # of a pair, the chosen one
        begin = int(np.flatnonzero(~mask)[-1]) + 1 if not mask.all() else 0
        if begin and len(result) < count:
            result.append(Question(ids[:begin].tolist(), ids[begin:].tolist()))
    return result


def finish_model(
    config: Config, model_dir: Path, heldout: TokenDataset, emit: Emit, objective: str = "sft"
) -> dict[str, Any]:
    """Write the card into the exported folder, then load it and let it answer.

    Answering from the folder, not from the engine, shows that what was exported is what was
    trained. Returns `exact_match`: the share of held-out answers equal to their reference.
    """
    write_card(config, model_dir, objective)
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


def trained_as(config: Config, objective: str) -> str:
    if objective == "reward":
        return "a reward model, from pairs of a better and a worse answer"
    if objective == "dpo":
        return f"direct preference optimisation, beta {config.dpo.beta:g}"
    tokens = "response tokens only" if config.data.mask_prompt else "all tokens"
    return f"supervised fine-tuning with the loss on {tokens}"


def write_card(config: Config, model_dir: Path, objective: str = "sft") -> None:
    """objective: the name of the run's."""
    use = SCORE if objective == "reward" else ASK
    base = config.model.path if config.model.init == "pretrained" else "none (from scratch)"
    (model_dir / "README.md").write_text(
        f"""# {config.run.name}

Trained by raysft: {trained_as(config, objective)}.

| | |
|---|---|
| base model | {base} |
| data | {config.data.path} |
| prompt template | {config.data.template} |
| sequence length | {config.batch.seq_len} tokens |
| learning rate | {config.optim.lr:g}, {config.optim.name} |
| precision | {config.engine.precision} |

Losses, hardware and versions are in the run's `summary.json`. {use}
"""
    )
