"""How stable a run was, from its metrics: clipping, spikes, gradient norms."""

from collections.abc import Mapping, Sequence
from typing import Any

from raysft.studies.numbers import median, percentile

WINDOW = 10  # log steps of the running median


def stability(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Of the lines of metrics.jsonl, in their order; None where there is nothing to tell from.

    clipped_share      of the steps taken, those whose gradient was clipped
    loss_spike         the largest training loss over the median of the WINDOW log steps before it
    grad_norm_p50/p99  of the gradient norms logged, before clipping
    """
    steps = [line for line in lines if "loss" in line]
    losses = [float(line["loss"]) for line in steps]
    norms = [float(line["grad_norm"]) for line in steps if line["grad_norm"] is not None]
    spikes = [
        loss / before
        for place, loss in enumerate(losses)
        if (before := median(losses[max(0, place - WINDOW) : place]))
    ]
    clipped = sum(line["clipped_steps"] for line in steps)
    return {
        "clipped_share": clipped / steps[-1]["step"] if steps else None,
        "loss_spike": max(spikes, default=None),
        "grad_norm_p50": percentile(norms, 50),
        "grad_norm_p99": percentile(norms, 99),
    }
