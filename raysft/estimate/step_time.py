"""Traffic between workers and the time of a step, for devices of a given peak."""

from dataclasses import dataclass, replace
from math import ceil

from raysft.estimate.families import Dims
from raysft.estimate.memory import Layout
from raysft.estimate.shape import flops, parameters, trained

UPDATE_BYTES = 34.0  # read and written a parameter: gradient 4+4, master and moments 24, weight 2


@dataclass(frozen=True)
class Hardware:
    """One worker's device and its link to the others."""

    flops_per_second: float
    memory_bytes_per_second: float | None  # None: the update is taken to cost nothing
    link_bytes_per_second: float


@dataclass(frozen=True)
class StepTime:
    """Seconds. The truth lies between `overlapped` and `in_turn`, at a peak nobody reaches."""

    workers: int
    sequences: int  # in a step
    compute_s: float
    traffic_s: float
    update_s: float

    @property
    def overlapped_s(self) -> float:
        return max(self.compute_s, self.traffic_s) + self.update_s

    @property
    def in_turn_s(self) -> float:
        return self.compute_s + self.traffic_s + self.update_s


def traffic_bytes(layout: Layout, dims: Dims, micro_batches: int) -> dict[str, float]:
    """What one worker sends in a step, by ring collectives: (W - 1) / W of what they carry.

    Rajbhandari et al. 2020, section 7: stages 1 and 2 send gradients and gather weights, as much as
    an all-reduce of gradients; stage 3 half as much again. DeepSpeed reduces gradients once a step
    at stages 0 and 1 and at every micro-batch from stage 2 on, and stage 3 gathers the weights for
    every forward and every backward.
    """
    others, b = (layout.workers - 1) / layout.workers, layout.weight_bytes
    part = trained(dims) * others  # an adapter alone is reduced, and gathered up to stage 2
    summed = 4 if layout.accumulates else b  # bytes of a gradient that was summed first
    if layout.stage == 0:
        return {"gradients": 2 * summed * part, "weights": 0.0}
    if layout.stage == 1:
        return {"gradients": summed * part, "weights": b * part}
    whole = sum(parameters(dims).values()) * others
    weights = b * part if layout.stage == 2 else 2 * micro_batches * b * whole
    return {"gradients": b * part * micro_batches, "weights": weights}


def computed_flops(layout: Layout, dims: Dims, tokens: float) -> float:
    """FLOPs of one worker. With activation checkpointing the forward pass of the layers is done
    twice, a third of forward and backward. Logits are not: see head_nll."""
    parts = flops(dims, tokens, tokens * layout.record_tokens, tokens)
    linear = parts["linear"] / (2 if dims.adapter else 3)  # its forward pass: see shape.flops
    layers = linear + (parts["attention"] + parts.get("adapter", 0.0)) / 3
    again = layers if layout.checkpointing else 0.0
    return sum(parts.values()) + again


def step_time(layout: Layout, dims: Dims, sequences: int, hardware: Hardware) -> StepTime:
    """Of `sequences` sequences of T tokens over all workers, in whole micro-batches."""
    per_worker = ceil(sequences / layout.workers)
    at_once = max(1, layout.micro_batch_tokens // layout.record_tokens)
    micro_batches = ceil(per_worker / at_once)
    tokens = per_worker * layout.record_tokens
    split = layout.workers if layout.stage else 1
    updated = UPDATE_BYTES * trained(dims) / split
    memory = hardware.memory_bytes_per_second
    return StepTime(
        workers=layout.workers,
        sequences=sequences,
        compute_s=computed_flops(layout, dims, tokens) / hardware.flops_per_second,
        traffic_s=sum(traffic_bytes(layout, dims, micro_batches).values())
        / hardware.link_bytes_per_second,
        update_s=updated / memory if memory else 0.0,
    )


def scaling(
    layout: Layout, dims: Dims, sequences: int, hardware: Hardware, most: int = 1024
) -> tuple[list[StepTime], list[StepTime]]:
    """Weak (each worker keeps its sequences) and strong (all share the same) scaling."""
    share = max(1, sequences // layout.workers)
    counts = [2**power for power in range(most.bit_length()) if 2**power <= most]
    weak = [
        step_time(replace(layout, workers=count), dims, share * count, hardware) for count in counts
    ]
    strong = [
        step_time(replace(layout, workers=count), dims, sequences, hardware)
        for count in counts
        if count <= sequences
    ]
    return weak, strong
