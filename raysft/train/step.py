"""One optimizer step over its micro-batches, and the evaluation of a whole set."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from raysft.data.batch import Batch
from raysft.train.loss import supervised_nll, token_nll
from raysft.train.profile import phase
from raysft.train.spikes import is_spike, skip_beyond


class StepResult(NamedTuple):
    nll_sum: Tensor  # [], of this rank's share; still on the device, so that nothing waits for it
    grad_norm: Tensor | float  # of the global gradient before clipping, L2
    applied: bool  # false where the update was skipped: fp16 overflowed, or a spike
    spike: bool  # the gradient norm was beyond the limit


def train_step(
    engine: Any,
    batches: Sequence[Batch],
    *,
    supervised_tokens: int,
    lr: float,
    norm_limit: float,
) -> StepResult:
    """One update from the mean loss over the supervised tokens of all micro-batches and ranks.

    supervised_tokens: of the whole step, over all ranks. DeepSpeed averages gradients over ranks,
    so the world size multiplies it back; its division by micro-batches is switched off.
    norm_limit: of the gradient before clipping, beyond which the update is skipped.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    scale = dist.get_world_size() / supervised_tokens
    # What fp16's small gradients are multiplied by; it may change with every step.
    loss_scale = engine.optimizer.loss_scale if engine.fp16_enabled() else 1.0
    nll_sum = torch.zeros((), device=engine.device)
    for number, batch in enumerate(batches, start=1):
        engine.set_gradient_accumulation_boundary(number == len(batches))
        with phase("forward"):
            nll = supervised_nll(engine, batch.to(engine.device), scale * loss_scale)
        with phase("backward"):
            engine.backward(nll * scale, scale_wrt_gas=False)
        nll_sum += nll.detach()
        with phase("optimizer"):
            norm_before_update = unclipped_norm(engine)
            with skip_beyond(norm_limit, engine, norm_before_update):
                engine.step()  # updates the weights at the last micro-batch only
    grad_norm = engine.get_global_grad_norm()
    if grad_norm is None:
        grad_norm = norm_before_update
    spike = is_spike(grad_norm, norm_limit)
    return StepResult(nll_sum, grad_norm, engine.was_step_applied() and not spike, spike)


def unclipped_norm(engine: Any) -> Tensor | float:
    """Gradient norm where DeepSpeed reports none: it has no ZeRO and no mixed precision."""
    reports_norm = engine.zero_optimization() or engine.fp16_enabled() or engine.bfloat16_enabled()
    if reports_norm or not engine.is_gradient_accumulation_boundary():
        return float("nan")
    grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads)


class EvalResult(NamedTuple):
    loss: float | None  # mean NLL of the response tokens, nats; null without held-out records
    instruction_loss: float | None  # the same of the prompt tokens, which are never optimised
    supervised_tokens: int


@torch.no_grad()
def evaluate(engine: Any, batches: Sequence[Batch]) -> EvalResult:
    """Sum of NLL over sum of tokens, over all ranks: batch size and world size change nothing."""
    engine.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=engine.device)
    for batch in batches:
        on_device = batch.to(engine.device)
        nll = token_nll(engine, on_device, on_device.scored).double()
        response = on_device.is_supervised.double()
        prompt = 1 - response
        sums += torch.stack(
            [(nll * response).sum(), response.sum(), (nll * prompt).sum(), prompt.sum()]
        )
    engine.train()
    dist.all_reduce(sums)
    nll_response, num_response, nll_prompt, num_prompt = sums.tolist()
    return EvalResult(
        nll_response / num_response if num_response else None,
        nll_prompt / num_prompt if num_prompt else None,
        int(num_response),
    )
