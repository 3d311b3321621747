"""The largest stable rate: of one ladder of rates, over seeds, and what changes it."""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from raysft.studies.statistics import Interval, interval, positive_interval
from raysft.studies.study import Case, Results, done

Run = Mapping[str, Any]
# What combinations differ in -> the order of its values: the first is what others are held against.
FACTORS: dict[str, Callable[[Any], Any]] = {
    "warmup_ratio": lambda ratio: ratio,
    "max_grad_norm": lambda norm: -norm if norm else -math.inf,  # none, then closer and closer
    "precision": ("fp32", "bf16", "fp16").index,
}


class Bracket(NamedTuple):
    """What one ladder tells. None: no rate of it is stable, or none diverges."""

    stable: float | None  # the largest rate up to which no run diverged
    diverged: float | None  # the next one


class Threshold(NamedTuple):
    """The largest stable rate over the seeds. It lies between a rate that held and one that did
    not, so that each end has its own: the lower one of the 95 % interval of the rates that held,
    and the upper one of those that did not. Of one seed, the two rates."""

    stable: float | None  # geometric mean of the rates that held; None where a seed has none
    low: float | None
    high: float | None  # None where in some seed no rate diverged

    def words(self) -> str:
        low, high = (None if end is None else f"{end:.2g}" for end in (self.low, self.high))
        if low is None:
            return "not known" if high is None else f"below {high}"
        return f"{low} or more" if high is None else f"{low} to {high}"


def bracket(runs: list[Run]) -> Bracket:
    """Of the runs of one ladder."""
    stable = None
    for run in sorted(runs, key=lambda run: float(run["lr"])):
        if run["diverged"]:
            return Bracket(stable, run["lr"])
        stable = run["lr"]
    return Bracket(stable, None)


def threshold(brackets: list[Bracket]) -> Threshold:
    """Of the ladders of several seeds."""
    held = [one.stable for one in brackets if one.stable is not None]
    failed = [one.diverged for one in brackets if one.diverged is not None]
    below = positive_interval(held) if len(held) == len(brackets) else None
    above = positive_interval(failed) if len(failed) == len(brackets) else None
    return Threshold(
        stable=below and below.mean,
        low=below and (below.mean if below.low is None else below.low),
        high=above and (above.mean if above.high is None else above.high),
    )


def stable_runs(case: Case) -> list[Run]:
    """Those below the first that diverged, the lowest rate first."""
    held = bracket(case["runs"]).stable
    found = [run for run in case["runs"] if held is not None and run["lr"] <= held]
    return sorted(found, key=lambda run: float(run["lr"]))


def middle(case: Case) -> float | None:
    """Of a ladder, between its two rates, by their logarithms."""
    found = bracket(case["runs"])
    if found.stable is None or found.diverged is None:
        return None
    return math.sqrt(found.stable * found.diverged)


def least_loss(case: Case) -> float | None:
    """Held out, over the rates of a ladder."""
    return min((float(run["eval_loss"]) for run in stable_runs(case)), default=None)


def cost(case: Case) -> float | None:
    """Held-out loss at the largest stable rate, less the least."""
    found, least = stable_runs(case), least_loss(case)
    return None if least is None else found[-1]["eval_loss"] - least


def values_of(results: Results, factor: str) -> list[Any]:
    """The first is the one to hold others against."""
    return sorted({case[factor] for case in done(results)}, key=FACTORS[factor])


def pairs_by_seed(
    results: Results, factor: str, value: Any, figure: Callable[[Case], float | None]
) -> list[list[tuple[float, float]]]:
    """The figures of a value and of the first one, of ladders that differ in nothing else: a list
    for each seed. Where a ladder of the two has no such figure, they are left out."""
    base, others = values_of(results, factor)[0], [name for name in FACTORS if name != factor]
    by_place = {
        (case[factor], case["seed"], *(case[name] for name in others)): figure(case)
        for case in done(results)
    }
    found: dict[int, list[tuple[float, float]]] = {}
    for (at, seed, *rest), mine in by_place.items():
        against = by_place.get((base, seed, *rest))
        if at == value and mine is not None and against is not None:
            found.setdefault(seed, []).append((mine, against))
    return list(found.values())


def effect(results: Results, factor: str, value: Any) -> Interval | None:
    """By how much a value multiplies the largest stable rate of the first one: the geometric mean
    over pairs of ladders, for each seed; the interval is over the seeds."""
    seeds = pairs_by_seed(results, factor, value, middle)
    means = [statistics.geometric_mean([a / b for a, b in pairs]) for pairs in seeds]
    return positive_interval(means) if means else None


def gain(results: Results, factor: str, value: Any) -> Interval | None:
    """What a value adds to the least held-out loss over the rates, nats a token: as in `effect`."""
    seeds = pairs_by_seed(results, factor, value, least_loss)
    means = [statistics.fmean(a - b for a, b in pairs) for pairs in seeds]
    return interval(means) if means else None


def rung(results: Results) -> float | None:
    """How many times the rate before it the first one that diverged is, at most."""
    found = [bracket(case["runs"]) for case in done(results)]
    return max((b.diverged / b.stable for b in found if b.stable and b.diverged), default=None)
