"""Everything `raysft estimate` tells, as one plain dict."""

import os
from dataclasses import asdict, replace
from typing import Any

from raysft.config.adapter import Adapter
from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.estimate.adapters import adapted
from raysft.estimate.answers import beside_gib, iteration_flops
from raysft.estimate.choose import choose
from raysft.estimate.devices import DATASHEET
from raysft.estimate.families import Dims
from raysft.estimate.memory import GIB, Layout, activations, layout_of, memory_bytes
from raysft.estimate.shape import dims_of, flops, parameters, trained
from raysft.estimate.step_time import Hardware, StepTime, scaling, step_time, traffic_bytes

# Stage, optimizer offloaded, parameters offloaded.
CHOICES = [(0, False, False), (1, False, False), (2, False, False), (3, False, False)]
OFFLOADED = [(2, True, False), (3, True, False), (3, True, True)]
USUAL_RANK = 16  # of an adapter that is only proposed
LENGTHS = (128, 256, 512, 640, 768, 896, 1024)


def estimate(
    config: Config,
    *,
    device: str | None = None,
    peak_tflops: float | None = None,
    memory_gib: float | None = None,
    link_gbs: float | None = None,
    answers: bool = False,
) -> dict[str, Any]:
    """The figures given win over those of the device's datasheet; what neither says is left out.

    answers: of a run that draws them itself, whose engine has what is left of the memory.

    Raises UserError: an unknown device or model.
    """
    dims = dims_of(config)
    sheet = None
    if device is not None:
        sheet = DATASHEET.get(device.lower())
        if sheet is None:
            raise UserError(f"--device {device}: known are {', '.join(DATASHEET)}")
    memory = memory_gib or (sheet.memory_gib if sheet else None)
    if memory is None and not config.on_gpu:
        memory = machine_gib() / config.scaling.most
    beside = beside_gib(config, dims) if answers else {}
    if memory is not None:
        memory = max(0.0, memory - sum(beside.values()))
    why = None
    if config.left_open:
        config, why = choose(config, dims, memory)
    layout = layout_of(config)
    peak = peak_tflops or (sheet.tflops if sheet else None)
    link = link_gbs or (sheet.link_gbs if sheet else None)
    sequences = config.batch.global_batch_size
    result = {
        "dims": asdict(dims),
        "parameters": parameters(dims),
        "trained": trained(dims),
        "flops_per_token": {length: flops(dims, 1, length, 1) for length in lengths(config, dims)},
        "memory_gib": memory_table(layout, dims),
        "chosen": name_of(layout),
        "auto": why,
        "activations_gib": {
            kind: activations(replace(layout, eager=kind == "eager"), dims) / GIB
            for kind in ("sdpa", "eager")
        },
        "micro_batch_tokens": layout.micro_batch_tokens,
        "device": sheet.name if sheet else None,
        "device_memory_gib": memory,
        "beside_gib": beside,
        "iteration_flops": iteration_flops(config, dims) if answers else {},
        "largest_micro_batch": largest_micro_batch(layout, dims, memory) if memory else None,
        "traffic_gb": traffic_table(layout, dims, config),
        "advice": advice(layout, dims, config, memory),
        "scaling": None,
    }
    if peak:
        hardware = Hardware(
            peak * 1e12, sheet.memory_gbs * 1e9 if sheet else None, (link or float("inf")) * 1e9
        )
        weak, strong = scaling(layout, dims, sequences, hardware)
        result["step"] = described(step_time(layout, dims, sequences, hardware))
        result["scaling"] = {
            "peak_tflops": peak,
            "link_gbs": link,
            "memory_gbs": sheet.memory_gbs if sheet else None,
            "weak": [described(one) for one in weak],
            "strong": [described(one) for one in strong],
        }
    return result


def lengths(config: Config, dims: Dims) -> list[int]:
    wanted = {*LENGTHS, config.batch.seq_len}
    return sorted(length for length in wanted if length <= dims.n_positions)


def machine_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def name_of(layout: Layout) -> str:
    """Such as "ZeRO-3 O A"; the letters are explained under the table."""
    words = [f"ZeRO-{layout.stage}" if layout.stage else "no ZeRO"]
    words += ["O"] if layout.offload_optimizer else []
    words += ["P"] if layout.offload_params else []
    words += ["A"] if layout.checkpointing else []
    return " ".join(words)


def choices(layout: Layout) -> list[Layout]:
    listed = CHOICES + (OFFLOADED if layout.on_gpu else [])
    return [
        replace(layout, stage=stage, offload_optimizer=optimizer, offload_params=params)
        for stage, optimizer, params in listed
        if stage or layout.weight_bytes == 4  # without ZeRO training is in fp32 only
    ]


def memory_table(layout: Layout, dims: Dims) -> list[dict[str, Any]]:
    """A row for each choice of stage and offloading, with and without activation checkpointing."""
    rows = []
    for choice in choices(layout):
        for checkpointing in (False, True):
            one = replace(choice, checkpointing=checkpointing)
            parts = {name: size / GIB for name, size in memory_bytes(one, dims).items()}
            rows.append(
                {
                    "choice": name_of(one),
                    "parts": parts,
                    "total": sum(parts.values()),
                }
            )
    return rows


def total_gib(layout: Layout, dims: Dims) -> float:
    return sum(memory_bytes(layout, dims).values()) / GIB


def largest_micro_batch(layout: Layout, dims: Dims, memory_gib: float) -> int:
    """Sequences of T tokens in a micro-batch that fit; 0 if not even one does."""
    if total_gib(at(layout, 1), dims) > memory_gib:
        return 0
    fits = 1
    while total_gib(at(layout, fits * 2), dims) <= memory_gib:
        fits *= 2
    for step in [fits >> k for k in range(1, fits.bit_length())]:
        if total_gib(at(layout, fits + step), dims) <= memory_gib:
            fits += step
    return fits


def at(layout: Layout, sequences: int) -> Layout:
    return replace(layout, micro_batch_tokens=sequences * layout.record_tokens)


def traffic_table(layout: Layout, dims: Dims, config: Config) -> dict[str, dict[str, float]]:
    """GB that one worker sends in a step, for each stage."""
    micro_batches = config.grad_accum_steps
    return {
        name_of(one): {
            name: size / 1e9 for name, size in traffic_bytes(one, dims, micro_batches).items()
        }
        for one in choices(layout)
        if not (one.offload_optimizer or one.offload_params)
    }


def advice(layout: Layout, dims: Dims, config: Config, memory_gib: float | None) -> list[str]:
    """What the figures say about the stage that was chosen."""
    if memory_gib is None:
        return ["Name a --device, or its --memory-gib, to hear what fits."]
    total = total_gib(layout, dims)
    if total > memory_gib:
        fitting = [one for one in choices(layout) if total_gib(one, dims) <= memory_gib]
        words = f"{name_of(layout)} needs {total:.1f} GiB a worker, and there are {memory_gib:.1f}"
        checkpointed = replace(layout, checkpointing=True)
        fits = ["model.activation_checkpointing = true fits"]
        if total_gib(checkpointed, dims) > memory_gib:
            fits = [f"{name_of(fitting[-1])} fits"] if fitting else []
        if fits:
            return [f"{words}: {'; '.join([*fits, *an_adapter(layout, dims, memory_gib)])}."]
        smaller = ["take more workers, a shorter seq_len or a smaller micro-batch"]
        return [f"{words}: {', or '.join([*smaller, *an_adapter(layout, dims, memory_gib)])}."]
    lower = [
        one
        for one in choices(layout)
        if one.stage < layout.stage and not one.offload_optimizer and not one.offload_params
        and total_gib(one, dims) <= 0.9 * memory_gib
    ]  # fmt: skip
    if not lower or not layout.stage:
        return []
    best = lower[0]
    mine, its = (
        sum(traffic_bytes(one, dims, config.grad_accum_steps).values()) / 1e9
        for one in (layout, best)
    )
    sends = (
        f"sends {its:.1f} instead of {mine:.1f} GB a step"
        if layout.workers > 1
        else "gathers and frees nothing"
    )
    return [
        f"{name_of(best)} also fits, in {total_gib(best, dims):.1f} of {memory_gib:.1f} GiB a "
        f"worker, and {sends}: it would be faster (engine.zero_stage = {best.stage})."
    ]


def an_adapter(layout: Layout, dims: Dims, memory_gib: float) -> list[str]:
    """That one would make the model fit as it is laid out, where there is none and it would."""
    if dims.adapter:
        return []
    usual = Adapter(rank=USUAL_RANK)
    total = total_gib(layout, adapted(dims, usual))
    return (
        [f"an adapter fits (adapter.rank = {USUAL_RANK}), in {total:.1f} GiB"]
        if total <= memory_gib
        else []
    )


def described(time: StepTime) -> dict[str, float]:
    return asdict(time) | {"overlapped_s": time.overlapped_s, "in_turn_s": time.in_turn_s}
