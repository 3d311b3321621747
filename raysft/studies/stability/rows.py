"""The cases of results.json by combination and by rate, and around loss spikes."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from raysft.studies.stability.curves import AFTER, BEFORE
from raysft.studies.stability.thresholds import (
    FACTORS,
    Threshold,
    bracket,
    cost,
    least_loss,
    stable_runs,
    threshold,
)
from raysft.studies.statistics import Interval, interval
from raysft.studies.study import Case, Results, done


class AtRate(NamedTuple):
    """The runs of one combination at one rate, of all seeds."""

    runs: int
    diverged: int
    spikes: float  # a run
    clipped: float  # share of the steps
    eval_loss: Interval | None  # of those that held, nats a token


class Row(NamedTuple):
    """One combination over its seeds, losses held out, in nats a token."""

    warmup_ratio: float
    max_grad_norm: float
    precision: str
    threshold: Threshold
    best_rate: float | None  # geometric mean of those with the least loss
    best_loss: Interval | None
    cost: Interval | None  # of the largest stable rate, over the least loss
    spikes: float  # a run, over all rates
    clipped: float  # share of the steps, over all rates
    at: dict[float, AtRate]  # by rate; without those that no seed came to


def rows_of(results: Results) -> list[Row]:
    found = {tuple(case[name] for name in FACTORS) for case in done(results)}
    orders = list(FACTORS.values())
    listed = sorted(found, key=lambda one: [by(v) for by, v in zip(orders, one, strict=True)])
    return [row_of(one, [c for c in done(results) if is_of(c, one)]) for one in listed]


def is_of(case: Case, combination: tuple[Any, ...]) -> bool:
    return tuple(case[name] for name in FACTORS) == combination


def row_of(combination: tuple[Any, ...], cases: list[Case]) -> Row:
    best = [
        min(found, key=lambda run: float(run["eval_loss"]))
        for case in cases
        if (found := stable_runs(case))
    ]
    runs = [run for case in cases for run in case["runs"]]
    every = at_rate(cases, [run["lr"] for run in runs])
    return Row(
        **dict(zip(FACTORS, combination, strict=True)),
        threshold=threshold([bracket(case["runs"]) for case in cases]),
        best_rate=statistics.geometric_mean([run["lr"] for run in best]) if best else None,
        best_loss=over_seeds([least_loss(case) for case in cases]),
        cost=over_seeds([cost(case) for case in cases]),
        spikes=every.spikes,
        clipped=every.clipped,
        at={lr: at_rate(cases, [lr]) for lr in sorted({run["lr"] for run in runs})},
    )


def at_rate(cases: list[Case], rates: list[float]) -> AtRate:
    """Of the runs at these rates."""
    runs = [run for case in cases for run in case["runs"] if run["lr"] in rates]
    steps = sum(run["steps"] for run in runs)
    return AtRate(
        runs=len(runs),
        diverged=sum(run["diverged"] for run in runs),
        spikes=statistics.fmean(len(run["spikes"]) for run in runs),
        clipped=sum(run["clipped_steps"] for run in runs) / steps if steps else 0.0,
        eval_loss=over_seeds([run["eval_loss"] for run in runs if not run["diverged"]]),
    )


def over_seeds(values: list[float | None]) -> Interval | None:
    """Of the seeds that have a value."""
    known = [value for value in values if value is not None]
    return interval(known) if known else None


def for_each_seed(results: Results, value: Callable[[list[Case]], float | None]) -> Interval | None:
    """The interval is over the seeds, of all combinations together."""
    seeds = sorted({case["seed"] for case in done(results)})
    return over_seeds([value([c for c in done(results) if c["seed"] == seed]) for seed in seeds])


def mean_cost(cases: list[Case]) -> float | None:
    """Of the largest stable rates."""
    known = [one for case in cases if (one := cost(case)) is not None]
    return statistics.fmean(known) if known else None


def spikes_of(cases: list[Case]) -> list[Any]:
    return [spike for case in cases for run in case["runs"] for spike in run["spikes"]]


def ratio_before(cases: list[Case]) -> float | None:
    """Mean moment ratio of the updates that led to loss spikes; None of none."""
    listed = [spike["moment_ratios"][:BEFORE] for spike in spikes_of(cases)]
    known = [[ratio for ratio in ratios if ratio is not None] for ratios in listed]
    means = [statistics.fmean(ratios) for ratios in known if ratios]
    return statistics.fmean(means) if means else None


def around_spikes(results: Results) -> list[Interval | None]:
    """The moment ratio in the steps around loss spikes: means over the spikes of a seed."""
    places = range(BEFORE + AFTER + 1)
    return [for_each_seed(results, partial(mean_around, place)) for place in places]


def mean_around(place: int, cases: list[Case]) -> float | None:
    found = [spike["moment_ratios"][place] for spike in spikes_of(cases)]
    known = [ratio for ratio in found if ratio is not None]
    return statistics.fmean(known) if known else None


def usual_ratio(results: Results) -> float | None:
    """Median over the runs of the medians of their moment ratios."""
    runs = [run for case in done(results) for run in case["runs"]]
    known = [run["moment_ratio_p50"] for run in runs if run["moment_ratio_p50"] is not None]
    return statistics.median(known) if known else None
