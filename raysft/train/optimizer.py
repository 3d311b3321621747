"""The optimizer: which parameters decay, and whose kernel takes the step."""

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysft.config.schema import Config


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

            with compiling("cpu_adam"):
                adam = DeepSpeedCPUAdam(groups, adamw_mode=decoupled, **options)
            return adam, "DeepSpeedCPUAdam"
        except Exception as error:  # a missing compiler raises anything from OSError to assertion
            reason = str(error).strip().partition("\n")[0]
            fallback = f"; DeepSpeed's CPU Adam does not compile here: {reason}"
    return torch_class(groups, **options), f"torch {torch_class.__name__}{fallback}"


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Weight decay for matrices and embeddings, none for biases and layer norms. What is frozen is
    in no group."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for _, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        # Under ZeRO-3 a parameter is an empty tensor that knows its own shape.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (decayed if len(shape) >= 2 else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@contextmanager
def compiling(name: str) -> Iterator[None]:
    """While DeepSpeed's operation of this name is compiled, or found to be: one process at a time.

    torch does the same with a file that exists as long as somebody compiles. Where that process was
    killed, all others would wait for ever; the system lets go of our lock with whoever held it, and
    a file that is there then is nobody's.
    """
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory(name, verbose=False))
    with (folder / "raysft.lock").open("w") as ours:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(ours, fcntl.LOCK_EX)
        while (theirs := folder / "lock").exists() and is_open(theirs):  # by another program
            time.sleep(0.5)
        theirs.unlink(missing_ok=True)
        yield


def is_open(file: Path) -> bool:
    """By a process of this machine that we may look into."""
    wanted = os.path.realpath(file)
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(descriptor) == wanted:
                return True
    return False
