"""The DeepSpeed engine and its optimizer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from raysft.config.deepspeed import deepspeed_config
from raysft.config.schema import Config
from raysft.errors import UserError


def check_precision(precision: str) -> None:
    """Raises UserError where DeepSpeed would refuse the precision of this worker's device."""
    from deepspeed.accelerator import get_accelerator

    device = get_accelerator()
    if precision == "fp16" and not device.is_fp16_supported():
        raise UserError(
            "engine.precision: fp16 needs a device that can multiply it, and this "
            f'{device.device_name().upper()} cannot; take "bf16" or "fp32"'
        )


def make_engine(config: Config, model: nn.Module) -> tuple[Any, str]:
    """The engine and the name of the optimizer kernel in it, with the reason where it fell back."""
    import deepspeed

    optimizer, kernel = make_optimizer(config, model)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(config), dist_init_required=False
    )
    return engine, kernel


def make_optimizer(config: Config, model: nn.Module) -> tuple[torch.optim.Optimizer, str]:
    optim = config.optim
    groups = decay_groups(model.named_parameters(), optim.weight_decay)
    options: dict[str, Any] = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps}
    decoupled = optim.name == "adamw"
    torch_class = torch.optim.AdamW if decoupled else torch.optim.Adam
    runs_on_gpu = config.on_gpu and not config.engine.offload_optimizer
    if runs_on_gpu:
        return torch_class(groups, fused=True, **options), f"torch {torch_class.__name__} (fused)"
    fallback = ""
    if optim.cpu_kernel == "auto":
        try:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            return DeepSpeedCPUAdam(groups, adamw_mode=decoupled, **options), "DeepSpeedCPUAdam"
        except Exception as error:  # a missing compiler raises anything from OSError to assertion
            reason = str(error).strip().partition("\n")[0]
            fallback = f"; DeepSpeed's CPU Adam does not compile here: {reason}"
    return torch_class(groups, **options), f"torch {torch_class.__name__}{fallback}"


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Weight decay for matrices and embeddings, none for biases and layer norms."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for _, parameter in named_parameters:
        # Under ZeRO-3 a parameter is an empty tensor that knows its own shape.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (decayed if len(shape) >= 2 else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
