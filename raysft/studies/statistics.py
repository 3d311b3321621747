"""Means and slopes with their intervals, without numpy, so that a report is drawn at once."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# Quantile 0.975 of Student's t, by degrees of freedom from 1 on; the normal's beyond.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL = 1.960


class Interval(NamedTuple):
    """A mean over runs that differ in their seed only, and the interval that holds the true mean
    in 95 of 100 such studies, by Student's t. Where runs are too few the interval is unknown."""

    mean: float
    low: float | None
    high: float | None
    runs: int

    def holds(self, value: float) -> bool | None:
        """Whether the value is within; None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= value <= self.high

    def share(self, form: str) -> str:
        """The mean, and how far above it the interval reaches, as a share of it."""
        if self.high is None:
            return f"{self.mean:{form}}"
        return f"{self.mean:{form}} ± {self.high / self.mean - 1:.0%}"

    def points(self) -> str:
        """Of a difference of shares, in percentage points."""
        low, high = (None if end is None else 100 * end for end in (self.low, self.high))
        return Interval(100 * self.mean, low, high, self.runs).words("+.1f") + " percentage points"

    def words(self, form: str) -> str:
        if self.low is None or self.high is None:
            runs = "one run" if self.runs == 1 else f"{self.runs} runs"
            return f"{self.mean:{form}} ({runs}, no interval)"
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"


def plus_minus(found: Interval | None, form: str) -> str:
    """A cell of a table: the mean and half of its interval; empty where there is none."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.mean:{form}}"
    return f"{found.mean:{form}} ± {(found.high - found.low) / 2:{form.lstrip('+')}}"


def judged(found: Interval, *, more: str, less: str, equal: str, than: float = 0.0) -> str:
    """Whether it is above a value, below, or neither: one of these words."""
    if found.low is None or found.high is None:
        return "not judged by one seed"
    return more if found.low > than else less if found.high < than else equal


def interval(values: Sequence[float]) -> Interval:
    """Raises statistics.StatisticsError where there are none."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Interval(mean, None, None, count)
    quantile = T_QUANTILES[count - 2] if count - 2 < len(T_QUANTILES) else NORMAL
    half = quantile * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def positive_interval(values: Sequence[float]) -> Interval:
    """The same of what is above 0 and varies by factors: by the logarithms, so that the mean is the
    geometric one and no end is below 0."""
    mean, low, high, runs = interval([math.log(value) for value in values])
    ends = [None if end is None else math.exp(end) for end in (low, high)]
    return Interval(math.exp(mean), ends[0], ends[1], runs)


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The a of y = c x^a: least squares in the logarithms. Both above 0, of two x at least."""
    logs = [math.log(value) for value in x], [math.log(value) for value in y]
    return statistics.linear_regression(*logs).slope
