"""What a run was like, from its metrics of every step: plain arithmetic."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from raysft.studies.numbers import median, percentile

Line = Mapping[str, Any]  # of metrics.jsonl
WINDOW = 10  # steps whose median a loss is held against
SPIKE = 1.5  # times that median
BEFORE = 8  # steps whose updates are looked at for the reason of a spike
AFTER = 2


class Spike(NamedTuple):
    step: int  # the first of the losses that are too large
    loss: float
    before: float  # median of the losses before it


def spikes(losses: Sequence[float]) -> list[Spike]:
    """Of the training losses of all steps, from step 1 on. Losses that are too large within WINDOW
    steps of the first one belong to the same spike."""
    found: list[Spike] = []
    for place, loss in enumerate(losses):
        before = median(losses[max(0, place - WINDOW) : place])
        step = place + 1
        if before is None or loss <= SPIKE * before:
            continue
        if not found or step - found[-1].step > WINDOW:
            found.append(Spike(step, loss, before))
    return found


def around(ratios: Sequence[float | None], step: int) -> list[float | None]:
    """The moment ratios of the updates from BEFORE steps before a step to AFTER steps after it.

    ratios: of all steps, from step 1 on. None where there was none.
    """
    steps = range(step - BEFORE, step + AFTER + 1)
    return [ratios[at - 1] if 1 <= at <= len(ratios) else None for at in steps]


def facts_of(lines: Sequence[Line]) -> dict[str, Any]:
    """Of the lines of one run, in their order, those of single steps and of evaluations.

    eval_loss    held out, the last one that there is
    spikes       of each its step, loss, the median before, and the moment ratios around it
    """
    steps = [line for line in lines if "loss" in line]
    ratios = [line["moment_ratio"] for line in steps]
    found = spikes([float(line["loss"]) for line in steps])
    known = [ratio for ratio in ratios if ratio is not None]
    return {
        "steps": len(steps),
        "eval_loss": next((x["eval_loss"] for x in reversed(lines) if "eval_loss" in x), None),
        "clipped_steps": sum(line["clipped_steps"] for line in steps),
        "skipped_steps": sum(line["skipped_steps"] for line in steps),
        "spikes": [
            {**spike._asdict(), "moment_ratios": rounded(around(ratios, spike.step))}
            for spike in found
        ],
        "moment_ratio_p50": percentile(known, 50),
        "moment_ratio_p99": percentile(known, 99),
    }


def rounded(ratios: Sequence[float | None]) -> list[float | None]:
    return [None if ratio is None else round(ratio, 3) for ratio in ratios]
