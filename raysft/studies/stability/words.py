"""The question of `bench stability`, answered in a few sentences."""

import statistics
from typing import Any

from raysft.studies.stability.curves import BEFORE
from raysft.studies.stability.rows import (
    Row,
    for_each_seed,
    mean_cost,
    ratio_before,
    rows_of,
    spikes_of,
)
from raysft.studies.stability.thresholds import FACTORS, effect, gain, rung, values_of
from raysft.studies.statistics import judged
from raysft.studies.study import Results, done

# What combinations differ in -> what it is a remedy by, in the source's words.
REMEDIES = {
    "warmup_ratio": "warmup",
    "max_grad_norm": "clipping",
    "precision": "lower precision",
}


def of_value(factor: str, value: Any) -> str:
    """Such as "3 % warmup"."""
    match factor:
        case "warmup_ratio":
            return f"{value:.0%} warmup" if value else "no warmup"
        case "max_grad_norm":
            return f"clipping to {value:g}" if value else "no clipping"
        case _:
            return str(value)


def of_row(row: Row) -> str:
    return ", ".join(of_value(factor, getattr(row, factor)) for factor in FACTORS)


def verdict(results: Results) -> str:
    rows = rows_of(results)
    if not rows:
        return "No ladder of rates went to its end, so there is nothing to tell."
    parts = [of_factor(results, factor) for factor in FACTORS]
    return " ".join(filter(None, (*parts, of_cost(results, rows), of_spikes(results))))


def of_factor(results: Results, factor: str) -> str:
    """What its values do to the largest stable rate; judged by the one furthest from the first."""
    base, *others = values_of(results, factor)
    found = [(value, effect(results, factor, value)) for value in others]
    known = [(value, one) for value, one in found if one is not None]
    if not known:
        return ""
    listed = " and ".join(f"{of_value(factor, v)} by {one.words('.2f')}" for v, one in known)
    last = known[-1][1]
    runs = f"{last.runs} seeds, 95 % intervals" if last.runs > 1 else "one seed"
    remedy = REMEDIES[factor]
    says = judged(
        last,
        more="confirmed",
        less="refuted, for it allows less",
        equal="not seen here",
        than=1.0,
    )
    return (
        f"Against {of_value(factor, base)}, the largest stable rate is multiplied with {listed} "
        f"({runs}): that {remedy} allows larger rates is {says}.{of_gain(results, factor)}"
    )


def of_gain(results: Results, factor: str) -> str:
    """What the value furthest from the first does to the loss at the best rate."""
    last = values_of(results, factor)[-1]
    found = gain(results, factor, last)
    if found is None:
        return ""
    return (
        f" At the best rate of each, the held-out loss with {of_value(factor, last)} differs by "
        f"{found.words('+.3f')} nats a token."
    )


def of_cost(results: Results, rows: list[Row]) -> str:
    """What the largest stable rate costs, and what is best."""
    found = for_each_seed(results, mean_cost)
    known = [row for row in rows if row.best_loss is not None]
    if found is None or not known:
        return "The lowest rate diverges already: no rate is known to be stable."
    best = min(known, key=lambda row: row.best_loss.mean if row.best_loss else 0.0)
    assert best.best_loss is not None
    apart = rung(results)
    told = "No rate diverged. " if apart is None else f"Rates there are {apart:.2g} times apart. "
    return (
        f"{told}At the largest that is stable the held-out loss is {found.words('.2f')} nats a "
        f"token above that of the best rate. The least loss, {best.best_loss.words('.3f')}, is "
        f"that of {of_row(best)} at a rate of {best.best_rate:.2g}."
    )


def of_spikes(results: Results) -> str:
    """When they come, and whether Adam's second moment had lagged behind the gradients."""
    listed, ratio = spikes_of(done(results)), for_each_seed(results, ratio_before)
    if not listed or ratio is None:
        return "No loss spiked."
    step = statistics.median_low(spike["step"] for spike in listed)
    total = done(results)[0]["total_steps"]
    says = judged(
        ratio,
        more="it had lagged behind, so that updates were larger than Adam means them to be",
        less="it had not lagged behind, so that the rate itself is the reason",
        equal="whether it had lagged behind is not clear",
        than=1.0,
    )
    if ratio.low is None:
        says = "whether it had lagged behind is not judged by one seed"
    return (
        f"Of {len(listed)} loss spikes half came by step {step} of {total}; in the {BEFORE} steps "
        f"before, gradients were {ratio.words('.2f')} times what Adam's second moment expected: "
        f"{says}."
    )


def of_case(case: Any) -> tuple[str, str]:
    """For the console: which ladder, and how it went."""
    values = (of_value(factor, case[factor]) for factor in FACTORS)
    name = f"{', '.join(values)}, seed {case['seed']}"
    if case["status"] != "done":
        return name, f"{case['status']}: {case['error']}"
    spikes = sum(len(run["spikes"]) for run in case["runs"])
    last = case["runs"][-1]
    how = f"diverged at {last['lr']:g}" if last["diverged"] else f"stable up to {last['lr']:g}"
    return name, f"{how}, {spikes} loss spikes"
