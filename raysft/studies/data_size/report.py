"""results.json of `bench data-size` to a verdict, tables, Markdown and a figure."""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from raysft.studies.data_size.figure import draw
from raysft.studies.data_size.rows import (
    MATCHED,
    Row,
    farthest_from,
    power_law,
    power_of,
    rows_of,
)
from raysft.studies.hardware import layout, machine_of
from raysft.studies.page import Page, study
from raysft.studies.statistics import plus_minus
from raysft.studies.study import Point, Results, done
from raysft.studies.tables import Column, markdown_table, terminal_table

PLOT = "data-size.png"
CLAIM = (
    "The source text says that error is bias² + variance + noise, that tuning on little data "
    "raises the variance, and that n >> d / ε records are needed"
)


COLUMNS = (
    Column("n", lambda row: row.records, ",d"),
    Column("steps", lambda row: row.steps, ",d"),
    Column("held out", lambda row: plus_minus(row.heldout, ".3f")),
    Column("train", lambda row: row.train.mean, ".3f"),
    Column("gap", lambda row: plus_minus(row.gap, ".3f"), goes=1),
    Column("exact", lambda row: plus_minus(row.exact_match, ".0%")),
    Column("bias", lambda row: plus_minus(row.bias, ".3f"), goes=4),
    Column("variance", lambda row: plus_minus(row.variance, ".3f"), goes=3),
    Column("gain", lambda row: plus_minus(row.gain, "+.3f"), goes=2),
)


def verdict(results: Results) -> str:
    """The question of the study, answered in a few sentences."""
    rows = rows_of(results, "steps")
    if len(rows) < 2:
        return "Fewer than two sizes have a run that went to its end: there is nothing to tell."
    return " ".join((of_power(results), of_gain(rows), of_parts(rows), of_bound(results, rows)))


def of_power(results: Results) -> str:
    words = []
    for matched, name in MATCHED.items():
        power, rows = power_of(results, matched), rows_of(results, matched)
        if power:
            factor = farthest_from(power_law(rows), rows)
            words.append(f"n^-{power.words('.2f')} at {name}, within a factor of {factor:.2f}")
    return f"The held-out loss falls as {', and as '.join(words)}."


def of_gain(rows: list[Row]) -> str:
    """From which size on more records lower the loss no longer, beyond the noise."""
    paying = [row for row in rows if row.gain and row.gain.high is not None and row.gain.high < 0]
    last = rows[-1]
    if rows[1].gain is None or rows[1].gain.high is None:
        return "From which size on more records stop paying is not judged by one seed."
    if not paying:
        return "No step to a larger size lowers it beyond the noise, at equal steps."
    if paying[-1] is last:
        return f"More records still paid at {last.records:,}, the most that there were."
    return f"At equal steps, more than {paying[-1].records:,} records lower it no further."


def of_parts(rows: list[Row]) -> str:
    first, last = rows[0], rows[-1]
    if first.variance is None or last.variance is None or first.bias is None or last.bias is None:
        return "What of it is variance over subsets is not told by one subset."
    return (
        f"From {first.records:,} to {last.records:,} records its variance over subsets goes from "
        f"{first.variance.words('.3f')} to {last.variance.words('.3f')} nats a token, and bias "
        f"with noise from {first.bias.words('.3f')} to {last.bias.words('.3f')}."
    )


def of_bound(results: Results, rows: list[Row]) -> str:
    """What n >> d / epsilon asks for, with epsilon the loss that was reached."""
    parameters = done(results)[0]["parameters"]
    reached = rows[-1].heldout.mean
    return (
        f"n >> d / ε, with d = {parameters:,} parameters and ε = {reached:.3f} nats, would have "
        f"asked for far more than {parameters / reached:,.0f} records."
    )


def tables(results: Results) -> list[RenderableType]:
    return [
        terminal_table(f"At {name}", COLUMNS, rows)
        for matched, name in MATCHED.items()
        if (rows := rows_of(results, matched))
    ]


def sections(results: Results) -> list[str]:
    lines: list[str] = []
    for matched, name in MATCHED.items():
        table = markdown_table(COLUMNS, rows_of(results, matched))
        lines += [f"## At {name}", "", *table, ""]
    return lines


MEANINGS = (
    "n: training records, a random subset for each seed; held out, train: losses of the",
    "answers, nats a token; gap: between them; exact: answers equal to their reference; bias:",
    "loss of the mean of the subsets' predictions, which is bias and the noise of the data;",
    "variance: how far the mean of their losses is above it, on held-out tokens that are the",
    "same for all; both by the jackknife, as endless subsets would have them; gain: change of",
    "the held-out loss from the size before, of each seed. ±: half of a 95 % interval over",
    "subsets, by Student's t. Within a factor: of the law, where the mean is that misses most.",
)


def facts(results: Results) -> list[tuple[str, str]]:
    config, cases = results["config"], done(results)
    rows = machine_of(config, cases)
    run = (
        f"{config['bench']['seeds']} subsets of each size, {layout(config)}, "
        f"{config['engine']['precision']}, batches of "
        f"{config['batch']['global_batch_size']} records"
    )
    rows.append(("runs", run))
    if cases:
        told = f"{cases[0]['asked']} held-out records of {config['data']['path']}, greedy"
        rows.append(("answers", told))
    return rows


def words(case: Mapping[str, Any]) -> tuple[str, str]:
    name = f"{case['records']:,} records, equal {case['matched']}, seed {case['seed']}"
    if case["status"] != "done":
        return name, f"{case['status']}: {case['error']}"
    return name, f"loss {case['eval_loss']:.4f} held out, {case['train_loss']:.4f} in training"


def points(results: Results) -> list[Point]:
    """By size and steps; the largest, which is matched by both, once."""
    found: dict[str, Point] = {}
    for matched in MATCHED:
        for row in rows_of(results, matched):
            label = f"{row.records:,} records, {row.steps:,} steps"
            missed = None if row.exact_match is None else 1 - row.exact_match.mean
            found[label] = Point(label, "done", {"nats": row.heldout.mean, "missed": missed})
    return list(found.values())


PAGE = Page(
    title="What more records buy",
    figure=PLOT,
    shows="losses, their parts and exact match over the records",
    claim=CLAIM,
    draw=draw,
    verdict=verdict,
    words=words,
    sections=sections,
    meanings=MEANINGS,
    facts=facts,
)
STUDY = study("data-size", PAGE, tables, points)
