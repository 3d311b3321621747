"""The DeepSpeed engine: its config as a pure function of ours, and its optimizer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from raysft.config.schema import Config
from raysft.errors import UserError

# ZeRO-3 buffers in elements. DeepSpeed's defaults (5e8 and 1e9) assume a GPU with tens of GiB to
# spare; on a CPU, where workers share one memory, they alone keep GPT-2 Large out of 24 GiB.
CPU_BUCKET_SIZE = 5_000_000
CPU_MAX_LIVE_PARAMETERS = 100_000_000
# Nearly every matrix is then a group of its own, whose gradients the update need not copy together.
CPU_SUB_GROUP_SIZE = 1_000_000


def deepspeed_config(config: Config) -> dict[str, Any]:
    """DeepSpeed's own configuration for this run. Pure: no file, environment or device is read."""
    engine = config.engine
    result: dict[str, Any] = {
        # Nominal: train_step() says which micro-batch is the last of a step, and divides by tokens.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.grad_accum_steps,
        "gradient_clipping": config.optim.max_grad_norm,
        "bf16": {"enabled": engine.precision == "bf16"},
        "fp16": {"enabled": engine.precision == "fp16"},
        "zero_optimization": zero_config(config),
        # Our optimizer is made by make_optimizer(), also where its state is offloaded.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
    if engine.precision != "fp32" and config.grad_accum_steps > 1:
        # Sums of many bf16 gradients lose their small terms. Costs 2 bytes a parameter more, so
        # only where something is summed.
        result["data_types"] = {"grad_accum_dtype": "fp32"}
    return result


def zero_config(config: Config) -> dict[str, Any]:
    engine = config.engine
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.on_gpu}
    if engine.offload_params:
        zero["offload_param"] = {"device": "cpu", "pin_memory": config.on_gpu}
    if not config.on_gpu and engine.zero_stage > 0:
        zero |= {
            "reduce_bucket_size": CPU_BUCKET_SIZE,
            "allgather_bucket_size": CPU_BUCKET_SIZE,
            "overlap_comm": False,  # there is no second stream to overlap with
        }
    if not config.on_gpu and engine.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": CPU_BUCKET_SIZE,
            "stage3_max_live_parameters": CPU_MAX_LIVE_PARAMETERS,
            "stage3_max_reuse_distance": CPU_MAX_LIVE_PARAMETERS,
            "sub_group_size": CPU_SUB_GROUP_SIZE,
            "contiguous_gradients": False,  # one copy less: they are laid together to be sent
        }
    return zero


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
