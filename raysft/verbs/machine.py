"""The machine that a command is typed on, and what of a config fits it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from raysft.config.load import validate, with_overrides
from raysft.estimate.report import machine_gib

if TYPE_CHECKING:
    from raysft.config.schema import Config

SMALL = 50_000_000  # parameters below which compiling DeepSpeed's Adam takes longer than it saves


class Machine(NamedTuple):
    cpus: int  # that this process may use
    memory_gib: float
    gpus: int  # that PyTorch sees
    gpu: str  # its name, "" without one
    gpu_gib: float
    bf16: bool  # faster than fp32 where training runs: on a GPU that has it, or such a CPU

    @property
    def words(self) -> str:
        cpus = f"{self.cpus} CPU{'s' * (self.cpus > 1)}, {self.memory_gib:.0f} GiB"
        return (
            f"{self.gpus} x {self.gpu}, {self.gpu_gib:.0f} GiB each; {cpus}" if self.gpus else cpus
        )


def this_machine() -> Machine:
    import torch

    from raysft.model.cpu_bf16 import has_fast_bf16

    cpus, memory = len(os.sched_getaffinity(0)), machine_gib()
    if not torch.cuda.is_available():
        return Machine(cpus, memory, 0, "", 0.0, has_fast_bf16(Path("/proc/cpuinfo")))
    first = torch.cuda.get_device_properties(0)
    bf16 = first.major >= 8  # Ampere: those before compute it in software
    return Machine(
        cpus, memory, torch.cuda.device_count(), first.name, first.total_memory / 2**30, bf16
    )


def fitted(
    raw: dict[str, Any], hf_config: Any, machine: Machine
) -> tuple[dict[str, Any], str, list[str]]:
    """The raw config with a value for every "auto", why, and warnings.

    Of the ways in `attempts`, the first that fits by the arithmetic of `raysft estimate`; where
    that does not know the model, what a GPT-2 of its size would take.
    """
    from raysft.estimate.choose import SAFE, choose, needed_gib
    from raysft.estimate.families import dims_of_family
    from raysft.estimate.shape import dims_of_size, parameters

    known = dims_of_family(hf_config.to_dict())
    dims = known or dims_of_size(hf_config.to_dict())
    memory = machine.gpu_gib or machine.memory_gib
    if dims is None:
        return raw, "left to the run, which looks at the model", []
    if not machine.gpus and sum(parameters(dims).values()) < SMALL:
        raw = with_overrides(raw, {"optim.cpu_kernel": "torch"})
    for attempt in attempts(machine):
        tried = with_overrides(raw, attempt)
        config, why = choose(validate(tried, "init"), dims, memory)
        fits = needed_gib(config, dims) <= SAFE * memory
        if fits:
            break
    chosen = {key: value_of(config, key) for key in validate(tried, "init").left_open}
    roughly = "" if known else ", by a GPT-2 of its size"
    warning = f"it may not fit: {why}"
    return with_overrides(tried, chosen), why + roughly, [] if fits else [warning]


def attempts(machine: Machine) -> list[dict[str, Any]]:
    """The faster first."""
    if not machine.gpus:
        fp32 = [] if machine.bf16 else [{"engine.precision": "fp32"}]
        return [*fp32, {"engine.precision": "bf16"}]
    precision = {"engine.precision": "bf16" if machine.bf16 else "fp16"}
    offloaded = precision | {"engine.offload_optimizer": True}
    return [precision, offloaded, offloaded | {"engine.offload_params": True}]


def value_of(config: "Config", key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)
