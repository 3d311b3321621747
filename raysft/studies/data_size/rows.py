"""The cases of results.json by size: means over subsets, what they are made of, and power laws."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from raysft.studies.statistics import Interval, exponent, interval
from raysft.studies.study import Case, Results, done

# What runs of different sizes have in common -> in words.
MATCHED = {"steps": "equal optimizer steps", "epochs": "equal epochs"}


class Row(NamedTuple):
    """One size over its subsets, losses in nats a token."""

    records: int
    steps: int
    heldout: Interval
    train: Interval
    gap: Interval  # of the held-out loss over the training loss
    exact_match: Interval | None
    # Loss of the mean of the subsets' predictions, which is bias and the noise of the data, and how
    # far the mean of their losses is above it. One subset tells neither.
    bias: float | None
    variance: float | None
    gain: Interval | None  # held-out loss less that of the size before, paired by seed


def cases_of(results: Results, matched: str) -> list[Case]:
    """The largest size belongs to both."""
    cases = done(results)
    most = max((case["records"] for case in cases), default=0)
    return [case for case in cases if case["matched"] == matched or case["records"] == most]


def rows_of(results: Results, matched: str) -> list[Row]:
    """By size, the least first."""
    cases = cases_of(results, matched)
    rows: list[Row] = []
    before: list[Case] = []
    for size in sorted({case["records"] for case in cases}):
        mine = [case for case in cases if case["records"] == size]
        rows.append(row_of(mine, before))
        before = mine
    return rows


def row_of(cases: list[Case], before: list[Case]) -> Row:
    bias, variance = None, None
    if len(cases) > 1:
        bias, variance = bias_and_variance([case["token_losses"] for case in cases])
    matches = [case["exact_match"] for case in cases]
    return Row(
        records=cases[0]["records"],
        steps=cases[0]["steps"],
        heldout=interval([case["eval_loss"] for case in cases]),
        train=interval([case["train_loss"] for case in cases]),
        gap=interval([case["eval_loss"] - case["train_loss"] for case in cases]),
        exact_match=None if None in matches else interval(matches),
        bias=bias,
        variance=variance,
        gain=paired(cases, before),
    )


def paired(cases: list[Case], before: list[Case]) -> Interval | None:
    losses = {case["seed"]: case["eval_loss"] for case in before}
    found = [c["eval_loss"] - losses[c["seed"]] for c in cases if c["seed"] in losses]
    return interval(found) if found else None


def bias_and_variance(token_losses: Sequence[Sequence[float]]) -> tuple[float, float]:
    """What the mean loss of models of several subsets is made of, nats a token: lists by model.

    The loss of the mean of their predictions, and how far the mean of their losses is above it: 0
    where all predict alike, and never below (Jensen's inequality). Of a few subsets the variance is
    somewhat less than of all that there could be.
    """
    together, apart = [], []
    for of_token in zip(*token_losses, strict=True):
        together.append(-math.log(statistics.fmean(math.exp(-nll) for nll in of_token)))
        apart.append(statistics.fmean(of_token))
    of_mean = statistics.fmean(together)
    return of_mean, statistics.fmean(apart) - of_mean


def power_of(
    results: Results, matched: str, value: Callable[[Case], float] = lambda c: c["eval_loss"]
) -> Interval | None:
    """The a of the held-out loss as c n^-a, fitted for each seed; None of a single size."""
    fits = []
    cases = cases_of(results, matched)
    for seed in sorted({case["seed"] for case in cases}):
        mine = [case for case in cases if case["seed"] == seed]
        if len(mine) > 1:
            sizes = [float(case["records"]) for case in mine]
            fits.append(-exponent(sizes, [value(case) for case in mine]))
    return interval(fits) if fits else None
