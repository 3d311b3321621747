"""results.json of `bench masking` to a verdict, tables, Markdown and a figure."""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from raysft.studies.hardware import layout, machine_of
from raysft.studies.masking.figure import draw
from raysft.studies.masking.rows import (
    copied_beyond_chance,
    difference,
    exact_match,
    loss,
    references_beyond_chance,
    rows_of,
    weights_of,
)
from raysft.studies.page import Page, study
from raysft.studies.statistics import Interval, judged, plus_minus
from raysft.studies.study import Point, Results, done
from raysft.studies.tables import Column, markdown_table, terminal_table

PLOT = "masking.png"
CLAIM = (
    "The source text says that without masking the model learns to copy instructions, and that "
    "masking prevents it"
)


COLUMNS = (
    Column("weight", lambda row: row.weight, "g"),
    Column("answers", lambda row: plus_minus(row.answers, ".3f")),
    Column("prompts", lambda row: row.instructions and row.instructions.mean, ".2f", goes=1),
    Column("exact", lambda row: plus_minus(row.exact_match, ".0%")),
    Column("share", lambda row: plus_minus(row.share, ".0%")),
    Column("cosine", lambda row: plus_minus(row.cosine, ".2f"), goes=3),
    Column("copied", lambda row: plus_minus(row.copied, ".0%")),
    Column("chance", lambda row: row.by_chance and row.by_chance.mean, ".0%", goes=2),
)


def verdict(results: Results) -> str:
    """The question of the study, answered in a few sentences."""
    weights = weights_of(results)
    if len(weights) < 2:
        return "Fewer than two weights have a run that went to its end: there is nothing to tell."
    low, high = weights[0], weights[-1]
    return f"{of_copying(results, low, high)} {of_loss(results, low, high)}"


def of_copying(results: Results, low: float, high: float) -> str:
    found = difference(results, high, low, copied_beyond_chance)
    if found is None:
        return "No answers were generated, so that nothing is known of copying."
    says = judged(
        found,
        more="confirmed",
        less="refuted, for it copies less",
        equal="not seen here",
    )
    references = references_beyond_chance(results)
    return (
        f"Of an answer, the share that is one run of its own instruction, beyond chance, is "
        f"{found.points()} larger with weight {high:g} than with weight {low:g} "
        f"({seeds(found)}; in the references it is {references:.1%}): that unmasked training "
        f"learns to copy instructions is {says}."
    )


def of_loss(results: Results, low: float, high: float) -> str:
    """The difference in the held-out loss, and whether another weight is better than the least."""
    found = difference(results, high, low, loss)
    assert found is not None
    says = judged(
        found,
        more=f"worse than with weight {low:g}",
        less=f"better than with weight {low:g}",
        equal=f"neither better nor worse than with weight {low:g}, beyond the noise",
    )
    words = (
        f"The held-out loss of the answers differs by {found.words('+.4f')} nats a token, which "
        f"is {says}"
    )
    match = difference(results, high, low, exact_match)
    words += f"; exact match differs by {match.points()}" if match else ""
    best = min(rows_of(results), key=lambda row: row.answers.mean)
    return f"{words}. The lowest mean is that of weight {best.weight:g}."


def seeds(found: Interval) -> str:
    return f"over {found.runs} seeds, 95 % interval" if found.runs > 1 else "one seed"


def tables(results: Results) -> list[RenderableType]:
    rows = rows_of(results)
    if not rows:
        return []
    title = "By the weight of the prompts' tokens, at the end of training"
    return [terminal_table(title, COLUMNS, rows)]


def sections(results: Results) -> list[str]:
    return ["## At the end of training", "", *markdown_table(COLUMNS, rows_of(results)), ""]


MEANINGS = (
    "weight: data.prompt_loss_weight; answers, prompts: held-out loss of their tokens, nats a",
    "token; exact: answers equal to their reference; share: of the norm of the gradient, from",
    "the prompts' tokens at this weight, w‖p‖ / (‖a‖ + w‖p‖), where the gradient is a + w p;",
    "cosine: between a and p, on held-out records; copied: longest run of tokens that an",
    "answer has in common with its own prompt, as a share of the answer; chance: the same with",
    "the prompt of another record. ±: half of a 95 % interval over seeds, by Student's t.",
)


def facts(results: Results) -> list[tuple[str, str]]:
    config, cases = results["config"], done(results)
    rows = machine_of(config, cases)
    rows.append(
        (
            "runs",
            f"{config['bench']['seeds']} seeds of each weight, {layout(config)}, "
            f"{config['engine']['precision']}",
        )
    )
    if cases:
        steps, asked = cases[0]["measured"][-1]["step"], cases[0]["records"]
        batch = config["batch"]["global_batch_size"]
        rows.append(("training", f"{steps:,} steps of {batch} records, the same for all weights"))
        rows.append(("answers", f"greedy, to {asked} held-out records of {config['data']['path']}"))
    return rows


def words(case: Mapping[str, Any]) -> tuple[str, str]:
    name = f"weight {case['weight']:g}, seed {case['seed']}"
    if case["status"] != "done":
        return name, f"{case['status']}: {case['error']}"
    match = case["exact_match"]
    told = "" if match is None else f", exact match {match:.1%}"
    return name, f"held-out loss of the answers {loss(case):.4f}{told}"


def points(results: Results) -> list[Point]:
    """By weight."""
    return [
        Point(
            f"weight {row.weight:g}",
            "done",
            {
                "answers, nats": row.answers.mean,
                "missed": None if row.exact_match is None else 1 - row.exact_match.mean,
            },
        )
        for row in rows_of(results)
    ]


PAGE = Page(
    title="What the weight of the prompts does",
    figure=PLOT,
    shows="losses, exact match, gradients and copying over the weight",
    claim=CLAIM,
    draw=draw,
    verdict=verdict,
    words=words,
    sections=sections,
    meanings=MEANINGS,
    facts=facts,
)
STUDY = study("masking", PAGE, tables, points)
