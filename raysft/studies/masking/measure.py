"""What is measured of a run with some weight of the prompts: gradients, losses and answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raysft.config.schema import Config
from raysft.data.batch import Batch
from raysft.data.dataset import TokenDataset
from raysft.data.encoding import encode_texts
from raysft.model.answers import answered, questions
from raysft.model.generate import load
from raysft.studies.masking.copying import copied_by_chance, copied_share
from raysft.train.gradients import dot, gradient_of
from raysft.train.objectives.objective import Objective
from raysft.train.objectives.sft import SFT

GRADIENTS = ("answer_square", "prompt_square", "product")


def objective_for(config: Config) -> Objective:
    """Supervised fine-tuning that tells two gradients apart where it evaluates."""
    limit = config.optim.max_grad_norm

    def evaluate(engine: Any, batches: Sequence[Batch]) -> dict[str, float | None]:
        return {**SFT.evaluate(engine, batches), **two_gradients(engine, batches, limit)}

    return Objective(
        name="masking",
        reads=SFT.reads,
        loss=SFT.loss,
        counts=SFT.counts,
        evaluate=evaluate,
        reports=(*SFT.reports, *GRADIENTS),
    )


def two_gradients(engine: Any, batches: Sequence[Batch], max_grad_norm: float) -> dict[str, float]:
    """Of the loss of the answers' tokens and of that of the prompts', both divided by the number of
    all tokens: their squared norms and inner product. Every rank must call it."""
    count = torch.tensor(sum(len(batch.scored) for batch in batches), device=engine.device)
    dist.all_reduce(count)
    answers, prompts = (
        gradient_of(engine, SFT, listed, float(count), max_grad_norm)[0]
        for listed in (
            [only(batch, batch.in_answer) for batch in batches],
            [only(batch, ~batch.in_answer) for batch in batches],
        )
    )
    sums = torch.stack([dot(answers, answers), dot(prompts, prompts), dot(answers, prompts)])
    dist.all_reduce(sums)
    return dict(zip(GRADIENTS, sums.tolist(), strict=True))


def only(batch: Batch, which: Tensor) -> Batch:
    """The same records, of whose tokens only these are trained. which: bool [m], of `scored`."""
    return batch._replace(supervised=batch.scored[which], weights=None)


def answers_of(config: Config, model_dir: Path, heldout: TokenDataset) -> dict[str, Any]:
    """Exact match and copying of the exported model's answers to held-out records.

    Shares are of tokens that an answer has in one run with its own instruction, and by chance with
    another's; of the references too, which copy as much as the tasks ask for.
    """
    torch.set_num_threads(config.scaling.cpus_per_worker)
    asked = questions(heldout, config.eval.exact_match_records)
    if len(asked) < 2:
        return {"records": len(asked), "exact_match": None, "copied": None}
    model, template = load(str(model_dir))
    found = answered(model, template, asked)
    prompts = [question.prompt_ids for question in asked]
    given = encode_texts(template.tokenizer, [one.answer for one in found])
    wanted = encode_texts(template.tokenizer, [one.reference for one in found])
    return {
        "records": len(asked),
        "exact_match": sum(one.answer == one.reference for one in found) / len(found),
        "copied": {
            "answers": copied_share(given, prompts),
            "answers_by_chance": copied_by_chance(given, prompts),
            "references": copied_share(wanted, prompts),
            "references_by_chance": copied_by_chance(wanted, prompts),
        },
    }
