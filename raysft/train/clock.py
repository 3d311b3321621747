"""How long the steps of a run take, and what that comes to."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from raysft.data.loader import StepData
from raysft.estimate.families import Dims
from raysft.estimate.shape import flops

Mark = Any  # a moment: of perf_counter() on a CPU, an event of the device on a GPU


def percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def mark(device: torch.device) -> Mark:
    """Now, or on a GPU when it has done what it was given so far: nothing waits for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


@dataclass
class Lap:
    """An optimizer step of this rank: data, forward, backward and update."""

    marks: tuple[Mark, Mark] | None  # its begin and end, until someone asks how long it took
    data: StepData  # without its batches
    applied: bool  # false where the update was skipped

    @cached_property
    def seconds(self) -> float:
        """On a GPU this waits for the end of the step."""
        assert self.marks
        begin, end = self.marks
        self.marks = None  # a GPU's events are not kept for a whole run
        if isinstance(begin, float):
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end) / 1e3)


def rates(laps: Sequence[Lap]) -> dict[str, float | None]:
    """Tokens a second over all ranks, without padding: all, and the supervised ones."""
    seconds = sum(lap.seconds for lap in laps)
    tokens = sum(lap.data.tokens for lap in laps)
    supervised = sum(lap.data.supervised_tokens for lap in laps)
    return {
        "tokens_per_second": tokens / seconds if seconds else None,
        "supervised_tokens_per_second": supervised / seconds if seconds else None,
    }


class StepClock:
    """Times the optimizer steps of this rank by the clock of its device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started: Mark = None
        self._laps: list[Lap] = []  # of the steps that were applied

    def start(self) -> None:
        self._started = mark(self._device)

    def stop(self, data: StepData, *, applied: bool) -> Lap:
        """The step since start; kept for the summary unless the update was skipped."""
        lap = Lap((self._started, mark(self._device)), data._replace(batches=[]), applied)
        if applied:
            self._laps.append(lap)
        return lap

    def summary(self) -> dict[str, float | None]:
        """Over all steps but the first, which pays for allocation and compilation."""
        laps = self._steady()
        seconds = [lap.seconds for lap in laps]
        return rates(laps) | {
            "step_time_p50_s": percentile(seconds, 50),
            "step_time_p95_s": percentile(seconds, 95),
        }

    def flops_per_second(self, dims: Dims) -> float | None:
        """Of all ranks together, forward and backward, over the same steps."""
        laps = self._steady()
        seconds = sum(lap.seconds for lap in laps)
        tokens, supervised_tokens, pairs = (
            sum(getattr(lap.data, name) for lap in laps)
            for name in ("tokens", "supervised_tokens", "pairs")
        )
        done = sum(flops(dims, tokens, pairs, supervised_tokens).values())
        return done / seconds if seconds else None

    def _steady(self) -> list[Lap]:
        return self._laps[1:] or self._laps
