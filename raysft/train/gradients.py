"""The gradient of some records at the weights that are there, each rank holding its part of it.

For what studies measure. The real training step computes it, but its update is left out.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raysft.data.batch import Batch
from raysft.train.objectives.objective import Objective
from raysft.train.step import train_step

PIECE = 2**20  # elements
Gradient = list[Tensor]  # fp32, of any shapes: a partition; no element is another rank's as well


def gradient_of(
    engine: Any, objective: Objective, batches: Sequence[Batch], count: float, max_grad_norm: float
) -> tuple[Gradient, Tensor]:
    """Of the sum of the objective's losses over all ranks, divided by `count`, before clipping; and
    this rank's share of that sum, not divided, [].

    Weights, moments and counters stay as they are, to the bit. Every rank must call it, with as
    many batches as the others. Not for fp16, whose overflows give none.
    """
    with without_update(engine) as found:
        result = train_step(
            engine, objective, batches, count=count, lr=0.0, norm_limit=float("inf")
        )
    # DeepSpeed has clipped it, by the formula of torch.nn.utils.clip_grad_norm_: undone here.
    norm = float(result.grad_norm)
    if 0 < max_grad_norm < norm:
        for part in found:
            part *= (norm + 1e-6) / max_grad_norm
    if engine.zero_optimization_stage() == 0:  # every rank has all of it
        found = found[dist.get_rank() :: dist.get_world_size()]
    return found, result.loss_sum


@contextmanager
def without_update(engine: Any) -> Iterator[Gradient]:
    """Within it, engine.step() fills the list with this rank's gradients, and updates nothing.

    DeepSpeed calls the optimizer below it once for each group of parameters, with gradients that
    are reduced over the ranks, partitioned and in fp32: see also `spikes.skip_beyond`.
    """
    optimizer = engine.basic_optimizer
    found: Gradient = []

    def keep() -> None:
        for group in optimizer.param_groups:
            found.extend(p.grad.float().clone() for p in group["params"] if p.grad is not None)

    optimizer.step = keep
    try:
        yield found
    finally:
        del optimizer.step  # the method of its class is there again


def dot(a: Gradient, b: Gradient) -> Tensor:
    """This rank's summand of the inner product of two gradients, fp64 []: the sum over all ranks
    is that of the whole gradients, which are gathered nowhere.

    A piece at a time: a partition is one tensor, and twice it in fp64 would be four of it.
    """
    products = [
        torch.dot(x.double(), y.double())
        for one, other in pairs(a, b)
        for x, y in pairs(pieces(one), pieces(other))
    ]
    return torch.stack(products).sum() if products else torch.zeros((), dtype=torch.float64)


def pieces(part: Tensor) -> Sequence[Tensor]:
    return part.flatten().split(PIECE)  # type: ignore[no-any-return, no-untyped-call]


def pairs(a: Sequence[Tensor], b: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return iter(zip(a, b, strict=True))


class GradientSums:
    """Sums over many gradients m_j, from which their mean and variance follow: of each its squared
    norm, and of all their sum."""

    def __init__(self) -> None:
        self.squares: list[Tensor] = []
        self.total: Gradient = []

    def add(self, gradient: Gradient, factor: float = 1.0) -> None:
        """Of factor * gradient."""
        self.squares.append(factor**2 * dot(gradient, gradient))
        if not self.total:
            self.total = [torch.zeros_like(part) for part in gradient]
        for mine, part in pairs(self.total, gradient):
            mine.add_(part, alpha=factor)

    def reduced(self) -> tuple[float, float]:
        """Mean over j of |m_j|^2, and |mean over j of m_j|^2; every rank must call it."""
        number = len(self.squares)
        sums = torch.stack([torch.stack(self.squares).sum() / number,
                            dot(self.total, self.total) / number**2])  # fmt: skip
        if dist.is_initialized():
            dist.all_reduce(sums)
        mean_square, square_of_mean = sums.tolist()
        return mean_square, square_of_mean
