"""results.json of `bench grad-variance` to a verdict, tables, Markdown and a figure."""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from raysft.studies.grad_variance.figure import draw
from raysft.studies.grad_variance.rows import (
    LOSSES,
    Row,
    exponent_of,
    moments_when,
    rows_of,
)
from raysft.studies.hardware import layout, machine_of
from raysft.studies.page import Page, study
from raysft.studies.statistics import Interval
from raysft.studies.study import Point, Results, done
from raysft.studies.tables import Column, markdown_table, terminal_table

PLOT = "grad-variance.png"
CLAIM = "The source text says that the variance of the gradient is proportional to T"


def share(found: Interval | None) -> str:
    return "hidden by noise" if found is None else found.share(".3g")


COLUMNS = (
    Column("T", lambda row: row.seq_len, ",d"),
    Column("nats", lambda row: row.nll.mean, ".3f"),
    Column("‖G‖", lambda row: share(row.norm)),
    Column("tr(Σ)", lambda row: share(row.variance)),
    Column("noise scale", lambda row: share(row.noise_scale)),
)


def columns_for(results: Results) -> tuple[Column, ...]:
    """With the variance of the gradient of the config's own batch."""
    size = results["config"]["batch"]["global_batch_size"]
    of_batch = Column(f"of {size}", lambda row: row.variance.mean / size, ".3g")
    return *COLUMNS[:4], of_batch, COLUMNS[4]


def verdict(results: Results) -> str:
    """The question of the study, answered: which exponent holds, and the batch that follows."""
    if not done(results):
        return "No run went to its end, so there is nothing to tell."
    last = moments_when(results)[-1]
    return f"{exponents(results, last)} {batch_size(results, last)}".strip()


def exponents(results: Results, when: str) -> str:
    summed, mean = (exponent_of(results, when, loss) for loss in ("summed", "mean"))
    if summed is None or mean is None:
        return "One length alone tells no exponent."
    runs = f"over {summed.runs} seeds, 95 % intervals" if summed.runs > 1 else "one seed"
    holds = summed.holds(1.0)
    says = (
        "is not judged by one seed"
        if holds is None
        else "holds for that sum"
        if holds
        else f"does not hold for that sum: it grows {'faster' if summed.mean > 1 else 'slower'}"
    )
    falls = "falls" if mean.mean < 0 else "grows"
    return (
        f"{when.capitalize()} the variance of the gradient goes as T^{summed.words('.2f')} for a "
        f"loss summed over the tokens and as T^{mean.words('.2f')} for their mean ({runs}"
        f"): Var proportional to T {says}, and for the mean, which raysft trains, the "
        f"variance {falls} with T."
    )


def batch_size(results: Results, when: str) -> str:
    """What a user can act on: a batch of B takes (1 + N / B) times the fewest steps and (1 + B / N)
    times the fewest sequences, at a noise scale of N (McCandlish et al. 2018, section 2)."""
    rows = [row for row in rows_of(results) if row.when == when and row.loss == "mean"]
    longest = max(rows, key=lambda row: row.seq_len)
    size = results["config"]["batch"]["global_batch_size"]
    if longest.noise_scale is None:
        return (
            f"At T = {longest.seq_len:,} noise hides the gradient: more bench.examples would tell "
            f"the batch size that follows."
        )
    scale, length = longest.noise_scale, longest.seq_len
    told = (
        f"At T = {length:,} the noise scale is {scale.words('.3g')} sequences, or about "
        f"{scale.mean * length:,.0f} tokens"
    )
    if scale.mean < 1:
        told += ": one sequence alone holds more gradient than noise, so that a small batch will do"
    else:
        told += ": a batch of that many needs twice the fewest steps and twice the fewest sequences"
    return (
        f"{told}. One of {size}, as set, needs {1 + scale.mean / size:.2f} times the fewest steps "
        f"and {1 + size / scale.mean:.3g} times the fewest sequences."
    )


def tables(results: Results) -> list[RenderableType]:
    """The exponents, and the last moment of the loss that raysft trains; the report has all."""
    if not done(results):
        return []
    when, loss, rows = parts(results)[-1]
    return [
        terminal_table(EXPONENTS, EXPONENT_COLUMNS, exponent_rows(results)),
        terminal_table(heading(when, loss), columns_for(results), rows),
    ]


def heading(when: str, loss: str) -> str:
    return f"{when.capitalize()}, loss {LOSSES[loss]}"


def parts(results: Results) -> list[tuple[str, str, list[Row]]]:
    rows = rows_of(results)
    return [
        (when, loss, [row for row in rows if (row.when, row.loss) == (when, loss)])
        for when in moments_when(results)
        for loss in LOSSES
    ]


EXPONENTS = "tr(Σ) goes as T to the power of"
EXPONENT_COLUMNS = (
    Column("", lambda row: row[0], justify="left"),
    Column(LOSSES["summed"], lambda row: row[1]["summed"]),
    Column(LOSSES["mean"], lambda row: row[1]["mean"]),
)


def exponent_rows(results: Results) -> list[tuple[str, dict[str, str]]]:
    """Moment, and of each loss the exponent with its interval."""
    rows = []
    for when in moments_when(results):
        found = {loss: exponent_of(results, when, loss) for loss in LOSSES}
        rows.append((when, {k: "" if v is None else v.words(".2f") for k, v in found.items()}))
    return rows


def sections(results: Results) -> list[str]:
    lines: list[str] = []
    if done(results):
        rows = exponent_rows(results)
        lines += [f"## {EXPONENTS}", "", *markdown_table(EXPONENT_COLUMNS, rows), ""]
    for when, loss, rows_there in parts(results):
        lines += [f"## {heading(when, loss)}", ""]
        lines += [*markdown_table(columns_for(results), rows_there), ""]
    return lines


MEANINGS = (
    "nats: loss a token; ‖G‖: norm of the mean gradient, noise taken off; tr(Σ): variance of",
    "the gradient of one sequence, summed over all parameters; of a number: that of a batch of",
    "so many sequences; noise scale: tr(Σ) / ‖G‖², in sequences (McCandlish et al. 2018,",
    "arXiv:1812.06162). Geometric means over seeds; ±: how far above them a 95 % interval",
    "reaches, by Student's t of the logarithms. Were the tokens of a sequence independent,",
    "tr(Σ) would go as T for their sum, and as 1/T for their mean.",
)


def facts(results: Results) -> list[tuple[str, str]]:
    config, cases = results["config"], done(results)
    bench, scaling, engine = config["bench"], config["scaling"], config["engine"]
    rows = machine_of(config, cases)
    size = bench["shard_size"] or scaling["workers"]
    steps = [measured["step"] for measured in cases[0]["measured"]] if cases else []
    return [
        *rows,
        ("run", f"{layout(config)}, {engine['precision']}; {bench['seeds']} seeds, measured after "
                f"{listed(steps)} steps"),
        ("sequences", f"{bench['examples']} of each length, gradients of {size} at a time: the "
                      f"records of {config['data']['path']}, joined end to end and cut at T"),
    ]  # fmt: skip


def listed(steps: list[int]) -> str:
    return ", ".join(f"{step:,}" for step in steps)


def words(case: Mapping[str, Any]) -> tuple[str, str]:
    name = f"seed {case['seed']}"
    if case["status"] != "done":
        return name, f"{case['status']}: {case['error']}"
    last = case["measured"][-1]
    found = exponent_of({"cases": [case]}, last["when"], "summed")
    slope = "" if found is None else f", variance of the sum as T^{found.mean:.2f}"
    return name, f"measured at {len(case['measured'])} moments{slope}"


def points(results: Results) -> list[Point]:
    """By moment, loss and length."""
    return [
        Point(
            f"{row.when}, {row.loss}, T = {row.seq_len:,}",
            "done",
            {
                "variance": row.variance.mean,
                "noise scale": row.noise_scale.mean if row.noise_scale else None,
            },
        )
        for row in rows_of(results)
    ]


PAGE = Page(
    title="Gradient variance over the sequence length",
    figure=PLOT,
    shows="variance and noise scale over the sequence length",
    claim=CLAIM,
    draw=draw,
    verdict=verdict,
    words=words,
    sections=sections,
    meanings=MEANINGS,
    facts=facts,
)
STUDY = study("grad-variance", PAGE, tables, points)
