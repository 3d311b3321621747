"""The cases of results.json by size: means over subsets, what they are made of, and power laws."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from raysft.studies.statistics import Interval, exponent, interval
from raysft.studies.study import Case, Results, done

# What runs of different sizes have in common -> in words.
MATCHED = {"steps": "equal optimizer steps", "epochs": "equal epochs"}


Losses = Sequence[Sequence[float]]  # of the same held-out tokens, nats: a list for each model


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
    bias: Interval | None
    variance: Interval | None
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
        losses = [case["token_losses"] for case in cases]
        bias, variance = (jackknifed(part, losses) for part in (bias_of, variance_of))
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


def bias_of(token_losses: Losses) -> float:
    """Loss of the mean of the predictions of several models, nats a token."""
    return statistics.fmean(
        -math.log(statistics.fmean(math.exp(-nll) for nll in of_token))
        for of_token in zip(*token_losses, strict=True)
    )


def variance_of(token_losses: Losses) -> float:
    """How far the mean of their losses is above that, nats a token: 0 where all predict alike, and
    never below (Jensen's inequality)."""
    return statistics.fmean(map(statistics.fmean, token_losses)) - bias_of(token_losses)


def jackknifed(part: Callable[[Losses], float], token_losses: Losses) -> Interval:
    """What `part` would be with as many subsets as there could be, from the few that there are.

    Of n of them the variance is only 1 - 1/n of it, to first order, and the rest of it is taken for
    bias. The jackknife takes that out: the part of n subsets and that of all but one of them make n
    values, whose mean and interval these are (Tukey 1958). Two subsets have no interval: all of
    their differences are one.
    """
    count = len(token_losses)
    together = part(token_losses)
    values = [
        count * together - (count - 1) * part([*token_losses[:one], *token_losses[one + 1 :]])
        for one in range(count)
    ]
    found = interval(values)
    return found if count > 2 else found._replace(low=None, high=None)


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


def power_law(rows: Sequence[Row]) -> list[float]:
    """The held-out losses as the power law has them that is nearest to the means, in logarithms."""
    sizes, losses = [float(row.records) for row in rows], [row.heldout.mean for row in rows]
    if len(rows) < 2:
        return losses
    power, middle = exponent(sizes, losses), statistics.geometric_mean(sizes)
    return [statistics.geometric_mean(losses) * (size / middle) ** power for size in sizes]


def farthest_from(law: Sequence[float], rows: Sequence[Row]) -> float:
    """The largest factor between a mean and what the law has for it, from 1 on."""
    factors = [row.heldout.mean / value for row, value in zip(rows, law, strict=True)]
    return max(max(factor, 1 / factor) for factor in factors)
