"""One optimizer step over its micro-batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from raysft.data.batch import Batch
from raysft.train.objectives.objective import Objective
from raysft.train.profile import phase
from raysft.train.spikes import is_spike, skip_beyond


class StepResult(NamedTuple):
    loss_sum: Tensor  # [], of this rank's share; still on the device, so that nothing waits for it
    grad_norm: Tensor | float  # of the global gradient before clipping, L2
    applied: bool  # false where the update was skipped: fp16 overflowed, or a spike
    spike: bool  # the gradient norm was beyond the limit
    measures: Tensor | None = None  # [k], of this rank's share, as loss_sum


def train_step(
    engine: Any,
    objective: Objective,
    batches: Sequence[Batch],
    *,
    count: float,
    lr: float,
    norm_limit: float,
) -> StepResult:
    """One update from the mean loss over all that counts in all micro-batches and ranks.

    count: what the objective divides by, of the whole step over all ranks, such as the number of
    supervised tokens.
    DeepSpeed averages gradients over ranks, so the world size multiplies it back; its division by
    micro-batches is switched off. norm_limit: of the gradient before clipping, beyond which the
    update is skipped.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    scale = dist.get_world_size() / count
    # What fp16's small gradients are multiplied by; it may change with every step.
    loss_scale = engine.optimizer.loss_scale if engine.fp16_enabled() else 1.0
    loss_sum = torch.zeros((), device=engine.device)
    measures = torch.zeros(len(objective.measures), device=engine.device)
    for number, batch in enumerate(batches, start=1):
        engine.set_gradient_accumulation_boundary(number == len(batches))
        with phase("forward"):
            sums = objective.loss(engine, batch.to(engine.device), scale * loss_scale)
        with phase("backward"):
            engine.backward(sums.loss * scale, scale_wrt_gas=False)
        loss_sum += sums.loss.detach()
        measures += sums.measures
        with phase("optimizer"):
            norm_before_update = unclipped_norm(engine)
            with skip_beyond(norm_limit, engine, norm_before_update):
                engine.step()  # updates the weights at the last micro-batch only
    grad_norm = engine.get_global_grad_norm()
    if grad_norm is None:
        grad_norm = norm_before_update
    spike = is_spike(grad_norm, norm_limit)
    applied = engine.was_step_applied() and not spike
    return StepResult(loss_sum, grad_norm, applied, spike, measures)


def unclipped_norm(engine: Any) -> Tensor | float:
    """Gradient norm where DeepSpeed reports none: it has no ZeRO and no mixed precision."""
    reports_norm = engine.zero_optimization() or engine.fp16_enabled() or engine.bfloat16_enabled()
    if reports_norm or not engine.is_gradient_accumulation_boundary():
        return float("nan")
    grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads)
