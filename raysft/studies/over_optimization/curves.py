"""Whether a run went on to gain in what it was trained for while it lost in what was wanted."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from raysft.studies.statistics import Interval, interval
from raysft.studies.study import Case, Results

PARTS = 20  # of a run, each as long as the others: single iterations are noise


class Part(NamedTuple):
    """Means over a part of a run."""

    kl: float
    reward: float
    checked: float


class Row(NamedTuple):
    """A beta, over its seeds."""

    beta: float
    first: Part  # the first iteration: before any training
    last: Part
    gain: Interval  # of the reward, from the first part to the last
    better: Interval  # of the checker, in the same time
    turned: Interval | None  # what the checker lost from the best part to the last one
    meanwhile: Interval | None  # what the reward gained in the same time


def done(results: Results) -> list[Case]:
    return [case for case in results["cases"] if case["status"] == "done" and case["drawn"]]


def betas_of(results: Results) -> list[float]:
    return sorted({float(case["beta"]) for case in done(results)})


def runs_of(results: Results, beta: float) -> list[Case]:
    return [case for case in done(results) if case["beta"] == beta]


def mean_part(lines: Sequence[Mapping[str, float]]) -> Part:
    keys = ("kl_to_reference", "reward", "checked")
    return Part(*(statistics.fmean(line[key] for line in lines) for key in keys))


def parts_of(case: Case) -> list[Part]:
    """PARTS of them, or one for each iteration of a shorter run."""
    drawn = case["drawn"]
    count = min(PARTS, len(drawn))
    borders = [round(number * len(drawn) / count) for number in range(count + 1)]
    return [mean_part(drawn[a:b]) for a, b in pairwise(borders)]


def turns(runs: Sequence[Case]) -> list[tuple[float, float]]:
    """Of each run, what the checker lost since its best part, and what the reward gained since.

    Which part is the best, the other runs say: of its own, the best is the luckiest, and every run
    would seem to have lost something since. None of a single run.
    """
    parts = [parts_of(run) for run in runs]
    found = []
    for number, own in enumerate(parts):
        others = parts[:number] + parts[number + 1 :]
        if not others:
            return []
        means = [statistics.fmean(one[at].checked for one in others) for at in range(len(own))]
        best = own[means.index(max(means))]
        found.append((best.checked - own[-1].checked, own[-1].reward - best.reward))
    return found


def row_of(results: Results, beta: float) -> Row:
    runs = runs_of(results, beta)
    firsts = [mean_part(run["drawn"][:1]) for run in runs]
    lasts = [parts_of(run)[-1] for run in runs]
    both = list(zip(firsts, lasts, strict=True))
    turned = turns(runs)
    return Row(
        beta=beta,
        first=mean_of(firsts),
        last=mean_of(lasts),
        gain=interval([last.reward - first.reward for first, last in both]),
        better=interval([last.checked - first.checked for first, last in both]),
        turned=interval([lost for lost, _ in turned]) if turned else None,
        meanwhile=interval([gained for _, gained in turned]) if turned else None,
    )


class Leash(NamedTuple):
    """What the smallest beta comes to against the largest one, at the end, seed by seed."""

    loose: float
    tight: float
    reward: Interval
    checked: Interval


def leash(results: Results) -> Leash | None:
    """None where no seed has gone to its end with both."""
    betas = betas_of(results)
    if len(betas) < 2:
        return None
    ends = [
        {run["seed"]: parts_of(run)[-1] for run in runs_of(results, beta)}
        for beta in (betas[0], betas[-1])
    ]
    both = [(ends[0][seed], ends[1][seed]) for seed in sorted(ends[0].keys() & ends[1].keys())]
    if not both:
        return None
    reward, checked = (
        interval([getattr(loose, name) - getattr(tight, name) for loose, tight in both])
        for name in ("reward", "checked")
    )
    return Leash(betas[0], betas[-1], reward, checked)


def mean_of(parts: Sequence[Part]) -> Part:
    return Part(*(statistics.fmean(column) for column in zip(*parts, strict=True)))


def rows_of(results: Results) -> list[Row]:
    return [row_of(results, beta) for beta in betas_of(results)]
