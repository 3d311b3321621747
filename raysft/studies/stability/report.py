"""results.json of `bench stability` to tables, Markdown and a figure."""

from typing import NamedTuple

from rich.console import RenderableType

from raysft.studies.hardware import layout, machine_of
from raysft.studies.page import Page, study
from raysft.studies.stability.curves import SPIKE, WINDOW
from raysft.studies.stability.figure import draw
from raysft.studies.stability.rows import Row, rows_of
from raysft.studies.stability.thresholds import FACTORS, effect, gain, values_of
from raysft.studies.stability.words import of_case, of_row, of_value, verdict
from raysft.studies.statistics import Interval, plus_minus
from raysft.studies.study import Point, Results, done
from raysft.studies.tables import Column, markdown_table, terminal_table

PLOT = "stability.png"
CLAIM = (
    "The source text says that warmup, clipping and lower precision are remedies for unstable "
    "training"
)

COLUMNS = (
    Column("warmup", lambda row: row.warmup_ratio, ".0%"),
    Column("clipped to", lambda row: row.max_grad_norm or "never", "g"),
    Column("precision", lambda row: row.precision),
    Column("largest stable rate", lambda row: row.threshold.words()),
    Column("best rate", lambda row: row.best_rate, ".2g", goes=3),
    Column("least loss", lambda row: plus_minus(row.best_loss, ".3f")),
    Column("cost", lambda row: plus_minus(row.cost, ".2f"), goes=4),
    Column("spikes", lambda row: row.spikes, ".1f", goes=1),
    Column("clipped", lambda row: row.clipped, ".0%", goes=2),
)


class Against(NamedTuple):
    """A value beside the first one of what combinations differ in."""

    value: str
    base: str
    effect: Interval | None  # on the largest stable rate, times
    gain: Interval | None  # in the least held-out loss, nats a token


FACTOR_COLUMNS = (
    Column("", lambda row: row.value, justify="left"),
    Column("against", lambda row: row.base, justify="left"),
    Column("largest stable rate, times", lambda row: words(row.effect, ".2f")),
    Column("least loss, nats", lambda row: words(row.gain, "+.3f")),
)


def words(found: Interval | None, form: str) -> str:
    return "" if found is None else found.words(form)


def factor_rows(results: Results) -> list[Against]:
    return [
        Against(
            of_value(factor, value),
            of_value(factor, base),
            effect(results, factor, value),
            gain(results, factor, value),
        )
        for factor in FACTORS
        for base, *others in [values_of(results, factor)]
        for value in others
    ]


def tables(results: Results) -> list[RenderableType]:
    if not done(results):
        return []
    listed = factor_rows(results)
    first = [terminal_table(FACTORS_TITLE, FACTOR_COLUMNS, listed)] if listed else []
    return [*first, terminal_table(TITLE, COLUMNS, rows_of(results))]


FACTORS_TITLE = "What each does, with all else equal"
TITLE = "Combination by combination"


def losses_at(row: Row, lr: float) -> str:
    """A cell: held-out loss, and how many of the runs diverged."""
    found = row.at.get(lr)
    if found is None:
        return ""
    told = [plus_minus(found.eval_loss, ".2f")] if found.eval_loss else []
    if found.diverged:
        told += [f"diverged {found.diverged}/{found.runs}"]
    return ", ".join(told)


def spikes_at(row: Row, lr: float) -> str:
    """A cell: loss spikes a run, and the share of clipped steps."""
    found = row.at.get(lr)
    if found is None:
        return ""
    return f"{found.spikes:.1f}" + (f", {found.clipped:.0%}" if row.max_grad_norm else "")


def by_rate(results: Results) -> list[str]:
    rows = rows_of(results)
    rates = sorted({lr for row in rows for lr in row.at})
    lines: list[str] = []
    for title, cell in (
        ("Held-out loss by rate, and how many runs diverged", losses_at),
        ("Loss spikes a run by rate, and the share of clipped steps", spikes_at),
    ):
        columns = [Column("", of_row)] + [
            Column(f"{lr:g}", lambda row, lr=lr, cell=cell: cell(row, lr))  # type: ignore[misc]
            for lr in rates
        ]
        lines += [f"## {title}", "", *markdown_table(columns, rows), ""]
    return lines


def sections(results: Results) -> list[str]:
    if not done(results):
        return []
    factors = markdown_table(FACTOR_COLUMNS, factor_rows(results))
    by_warmup = markdown_table(COLUMNS, rows_of(results))
    lines = [f"## {FACTORS_TITLE}", "", *factors, "", f"## {TITLE}", "", *by_warmup, ""]
    return lines + by_rate(results)


MEANINGS = (
    "A run has diverged when its held-out loss, after any tenth of its steps, is 1.1 times that of",
    "the untrained model or of a uniform guess, or no number. Rates rise until one diverges; the",
    "largest stable rate lies between the last that held and the first that did not: from the",
    "lower end of the 95 % interval of the one to the upper end of that of the other, over seeds,",
    "by Student's t of the logarithms. Losses are held out, nats a token; least loss: over the",
    "rates; cost: of the largest stable rate, over the least loss; spikes: a run, losses of a step",
    f"beyond {SPIKE:g} times the median of the {WINDOW} before; clipped: share of the steps whose",
    "gradient was clipped. Each value is held against the first by ladders that differ in nothing",
    "else. Moment ratio: root mean square of the gradient over the root of Adam's second moment,",
    "about 1 where gradients are as large as before. ±: half of a 95 % interval over seeds.",
)


def facts(results: Results) -> list[tuple[str, str]]:
    config, cases = results["config"], done(results)
    rows = machine_of(config, cases)
    run = (
        f"{len(cases)} ladders of rates, {sum(len(case['runs']) for case in cases)} runs in all, "
        f"{config['bench']['seeds']} seeds; {layout(config)}, weight decay "
        f"{config['optim']['weight_decay']:g}, betas "
        f"{', '.join(f'{beta:g}' for beta in config['optim']['betas'])}"
    )
    rows.append(("runs", run))
    if cases:
        batch = config["batch"]["global_batch_size"]
        told = f"{cases[0]['total_steps']:,} steps of {batch} records of {config['data']['path']}"
        rows.append(("training", told))
    return rows


def points(results: Results) -> list[Point]:
    """By combination. A larger stable rate is better: its inverse is what is compared."""
    return [
        Point(
            of_row(row),
            "done",
            {
                "least loss": row.best_loss and row.best_loss.mean,
                "1 / stable rate": 1 / row.threshold.stable if row.threshold.stable else None,
            },
        )
        for row in rows_of(results)
    ]


PAGE = Page(
    title="Up to which learning rate training holds",
    figure=PLOT,
    shows="losses over the rate, largest stable rates and loss spikes",
    claim=CLAIM,
    draw=draw,
    verdict=verdict,
    words=of_case,
    sections=sections,
    meanings=MEANINGS,
    facts=facts,
)
STUDY = study("stability", PAGE, tables, points)
