"""What objectives of preference pairs share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raysft.data.batch import Batch
from raysft.data.loader import StepData
from raysft.train.loss import token_log_probability
from raysft.train.objectives.objective import Sums


def pairs_of(step: StepData) -> int:
    """Of the whole step, over all ranks: known before any backward pass."""
    return step.records


def answer_log_probabilities(model: Any, batch: Batch) -> Tensor:
    """log P of the answers of P pairs given their prompts, fp32 [P, 2]: chosen and rejected.

    Sums over the answer's tokens and the token that ends it, never means.
    """
    assert batch.pairs is not None
    logs = token_log_probability(model, batch, batch.supervised)
    sums = logs.new_zeros(len(batch.pairs.ends)).index_add(0, batch.pairs.half, logs)
    return sums.view(-1, 2)


def answer_lengths(batch: Batch) -> Tensor:
    """Tokens of the answers, fp32 [P, 2], with their end tokens."""
    assert batch.pairs is not None
    ones = torch.ones(len(batch.pairs.half), device=batch.input_ids.device)
    counts = ones.new_zeros(len(batch.pairs.ends)).index_add(0, batch.pairs.half, ones)
    return counts.view(-1, 2)


def is_right(margin: Tensor) -> Tensor:
    """1 where the chosen answer is ahead, 0 where it is behind; a tie counts half."""
    return (margin > 0).float() + 0.5 * (margin == 0).float()


@torch.no_grad()
def evaluate_sums(
    loss: Callable[[Any, Batch, float], Sums],
    names: Sequence[str],
    engine: Any,
    batches: Sequence[Batch],
) -> dict[str, float | None]:
    """Means over all pairs of all ranks: batch size and world size change nothing."""
    engine.eval()
    totals = torch.zeros(len(names) + 2, dtype=torch.float64, device=engine.device)
    for batch in batches:
        assert batch.pairs is not None
        sums = loss(engine, batch.to(engine.device), 1.0)
        count = sums.loss.new_tensor(float(len(batch.pairs.numbers)))
        totals += torch.cat([torch.stack([count, sums.loss]), sums.measures])
    engine.train()
    dist.all_reduce(totals)
    count, *rest = totals.tolist()
    means = [value / count if count else None for value in rest]
    return dict(zip(("eval_loss", *(f"eval_{name}" for name in names)), means, strict=True))
