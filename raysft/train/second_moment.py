"""How large gradients are beside what Adam's second moment expects of them."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def watch_moments(engine: Any) -> Callable[[], dict[str, float | None]]:
    """Look at every update from now on. What is returned tells the largest moment ratio of the
    updates since it was asked last, over all ranks, each of which must ask; None where none was
    made.

    The moment ratio of an update is

        sqrt(mean over the weights of g^2 / v),   v the second moment, corrected for its bias,

    with g as Adam gets it: clipped, if it is. It is about 1 where gradients are as large as before,
    and well above it where v lags behind them: then the update is larger than Adam means it to be.
    Shazeer and Stern 2018 (arXiv:1804.04235, section 5) call it the RMS of the update, and Wortsman
    et al. 2023 (arXiv:2304.13013) found it to rise some steps before a loss spike.
    """
    sums: defaultdict[int, list[Tensor]] = defaultdict(list)  # by update: see `ratios`
    optimizer = engine.basic_optimizer

    def look(*_: Any) -> None:
        """DeepSpeed calls the optimizer below it once for each group of parameters."""
        sums[engine.global_steps] += [
            ratios(p.grad, optimizer.state[p], group["betas"][1])
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]

    def told() -> dict[str, float | None]:
        if not sums:
            return {"moment_ratio": None}
        totals = torch.stack([torch.stack(parts).sum(0) for parts in sums.values()])
        sums.clear()
        dist.all_reduce(totals)
        return {"moment_ratio": float((totals[:, 0] / totals[:, 1]).sqrt().max())}

    optimizer.register_step_post_hook(look)
    return told


def ratios(grad: Tensor, state: dict[str, Any], beta2: float) -> Tensor:
    """Sum of g^2 / v over the elements that ever had a gradient, and their number: fp64 [2]."""
    expected = state["exp_avg_sq"].double() / (1 - beta2 ** float(state["step"]))
    known = expected > 0
    squares = grad.double().square()[known] / expected[known]
    return torch.stack([squares.sum(), known.sum().double()])
