"""What a model raises before it has trained a step: a fault of its own, or one that may heal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from raysft.errors import RunError, UserError, is_cut_off, is_out_of_memory

# Of devices and of collectives, which raise what programs raise too.
OF_THE_MACHINE = ("CUDA error", "NCCL", "gloo", "Gloo", "Timed out", "timed out")


@contextmanager
def told_of_the_model(hf_config: Any) -> Iterator[None]:
    """Raises UserError that names the model for an error which it would meet again."""
    try:
        yield
    except Exception as error:
        if may_heal(error):
            raise
        raise UserError(
            f"model.path: a model of type {hf_config.model_type!r} fails before it has trained a "
            f"step: {last_line(error)}. It may be one that raysft cannot train, or a config.json "
            "that does not fit it: job.log has the traceback. batch.packing = false may help, or "
            "another model"
        ) from error


def may_heal(error: Exception) -> bool:
    """Or is told in words of its own already."""
    if isinstance(error, UserError | RunError | OSError | dist.DistError):
        return True
    if is_out_of_memory(error) or is_cut_off(error):
        return True
    return any(words in str(error) for words in OF_THE_MACHINE)


def last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
