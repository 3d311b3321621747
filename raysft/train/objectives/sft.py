"""Supervised fine-tuning: the mean negative log-likelihood of the supervised tokens of a step.

With `data.prompt_loss_weight` w it is a weighted mean over all tokens t of the step,

    loss = sum_t w_t * -log P(x_t given x_<t) / sum_t w_t,   w_t = 1 in answers and w elsewhere,

so that at 0 it is the mean over the answers' tokens, and at 1 that over all tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from raysft.data.batch import Batch
from raysft.data.loader import RankData, StepData
from raysft.train.loss import supervised_nll, token_nll
from raysft.train.objectives.objective import Objective, Sums


def loss(model: Any, batch: Batch, gradient_scale: float) -> Sums:
    nll = supervised_nll(model, batch, gradient_scale)
    return Sums(nll, nll.new_empty(0))


def loss_weight(step: StepData) -> float:
    return step.loss_weight


@torch.no_grad()
def evaluate(engine: Any, batches: Sequence[Batch]) -> dict[str, float | None]:
    """Sum of NLL over sum of tokens, over all ranks: batch size and world size change nothing.

    eval_loss is of the response tokens, nats a token; eval_instruction_loss the same of the prompt
    tokens, which are never optimised. None without held-out records.
    """
    engine.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=engine.device)
    for batch in batches:
        on_device = batch.to(engine.device)
        nll = token_nll(engine, on_device, on_device.scored).double()
        response = on_device.in_answer.double()
        prompt = 1 - response
        sums += torch.stack(
            [(nll * response).sum(), response.sum(), (nll * prompt).sum(), prompt.sum()]
        )
    engine.train()
    dist.all_reduce(sums)
    nll_response, num_response, nll_prompt, num_prompt = sums.tolist()
    return {
        "eval_loss": nll_response / num_response if num_response else None,
        "eval_instruction_loss": nll_prompt / num_prompt if num_prompt else None,
    }


SFT = Objective(
    name="sft",
    reads=RankData,
    loss=loss,
    counts=loss_weight,
    evaluate=evaluate,
    reports=("eval_loss", "eval_instruction_loss"),
)
