"""How long the steps of a run take, and what that comes to."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from raysft.data.loader import StepData
from raysft.estimate.shape import Dims, flops


def percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


class StepClock:
    """Wall time of each optimizer step of this rank: data, forward, backward and update."""

    def __init__(self) -> None:
        self._started = 0.0
        # Seconds, tokens, supervised tokens, and pairs as in loader.StepData.
        self._steps: list[tuple[float, int, int, int]] = []

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, data: StepData, *, applied: bool) -> float:
        """Seconds since start; kept for the summary unless the update was skipped."""
        seconds = time.perf_counter() - self._started
        if applied:
            self._steps.append((seconds, data.tokens, data.supervised_tokens, data.pairs))
        return seconds

    def summary(self) -> dict[str, float | None]:
        """Over all steps but the first, which pays for allocation and compilation."""
        seconds, tokens, supervised_tokens, _ = self._steady()
        total = sum(seconds)
        return {
            "tokens_per_second": sum(tokens) / total if total else None,
            "supervised_tokens_per_second": sum(supervised_tokens) / total if total else None,
            "step_time_p50_s": percentile(seconds, 50),
            "step_time_p95_s": percentile(seconds, 95),
        }

    def flops_per_second(self, dims: Dims) -> float | None:
        """Of all ranks together, forward and backward, over the same steps."""
        seconds, tokens, supervised_tokens, pairs = map(sum, self._steady())
        done = sum(flops(dims, tokens, pairs, supervised_tokens).values())
        return done / seconds if seconds else None

    def _steady(self) -> tuple[Sequence[Any], ...]:
        """Columns of the steps that count, four of them."""
        steady = self._steps[1:] or self._steps
        return tuple(zip(*steady, strict=True)) if steady else ((), (), (), ())
