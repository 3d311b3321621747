"""results.json of `bench over-optimization` to a verdict, tables, Markdown and a figure."""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from raysft.studies.hardware import layout, machine_of
from raysft.studies.over_optimization.curves import PARTS, Row, done, leash, parts_of, rows_of
from raysft.studies.over_optimization.figure import draw
from raysft.studies.page import Page, study
from raysft.studies.statistics import judged, plus_minus
from raysft.studies.study import Point, Results
from raysft.studies.tables import Column, markdown_table, terminal_table

PLOT = "over-optimization.png"
CLAIM = (
    "A learned reward that is followed too far goes on rising while what was wanted falls (Gao et "
    "al. 2022), and beta, the weight of the distance from the start, is to prevent it"
)
COLUMNS = (
    Column("beta", lambda row: row.beta, "g"),
    Column("KL", lambda row: row.last.kl, ".2f"),
    Column("reward", lambda row: row.last.reward, ".3f"),
    Column("gained", lambda row: plus_minus(row.gain, "+.3f"), goes=2),
    Column("checker", lambda row: row.last.checked, ".3f"),
    Column("better", lambda row: plus_minus(row.better, "+.3f"), goes=3),
    Column("lost since best", lambda row: plus_minus(row.turned, "+.3f")),
    Column("reward since", lambda row: plus_minus(row.meanwhile, "+.3f"), goes=1),
)


def verdict(results: Results) -> str:
    """The question of the study, answered in a few sentences."""
    rows = rows_of(results)
    if not rows:
        return "No run went to its end, so there is nothing to tell."
    best = max(rows, key=lambda row: row.last.checked)
    start = rows[0].first.checked
    end = (
        f"The best at the end is beta {best.beta:g}: the checker's mean went from {start:.3f} to "
        f"{best.last.checked:.3f} at a KL divergence of {best.last.kl:.2f} nats an answer."
    )
    return " ".join(filter(None, (of_leash(results), of_turns(rows), end)))


def of_leash(results: Results) -> str:
    """What following the reward further has done."""
    found = leash(results)
    if found is None:
        return ""
    fell = judged(found.checked, more="not", less="fell", equal="not")
    says = judged(
        found.reward, more="confirmed" if fell == "fell" else "not seen here",
        less="not seen here", equal="not seen here",
    )  # fmt: skip
    seeds = found.reward.runs
    over = f"{seeds} seeds, 95 % intervals" if seeds > 1 else "one seed"
    return (
        f"With beta {found.loose:g} against beta {found.tight:g}, at the end, the reward differs "
        f"by {found.reward.words('+.3f')} and the checker's by {found.checked.words('+.3f')} "
        f"({over}): that a reward which is followed further loses what was wanted is {says}."
    )


def of_turns(rows: list[Row]) -> str:
    """What the checker lost since it was best, of each beta that has several seeds."""
    told = [
        f"{row.turned.words('.3f')} with beta {row.beta:g}{beyond(row)}"
        for row in rows
        if row.turned is not None
    ]
    return f"From its best to its end the checker's lost {', '.join(told)}." if told else ""


def beyond(row: Row) -> str:
    assert row.turned is not None
    assert row.meanwhile is not None
    if judged(row.turned, more="lost", less="", equal="") != "lost":
        return ""
    rose = judged(row.meanwhile, more=" while the reward rose", less="", equal="")
    return rose or " while the reward did not rise"


def tables(results: Results) -> list[RenderableType]:
    rows = rows_of(results)
    return [terminal_table("By beta, at the end of training", COLUMNS, rows)] if rows else []


def sections(results: Results) -> list[str]:
    return ["## At the end of training", "", *markdown_table(COLUMNS, rows_of(results)), ""]


MEANINGS = (
    f"Each run is cut into {PARTS} equal parts; its end is the last of them. KL: from the",
    "model at the start, nats an answer; reward: of a drawn answer, which is trained; gained:",
    "since the first iteration; checker: of a drawn answer, which is only watched; better:",
    "since the first iteration; lost since best: what the checker lost from its best part",
    "to the last one, where the other seeds say which part that is, because a run's own best",
    "part is also its luckiest; reward since: what the reward gained in the same time. ±: half",
    "of a 95 % interval over seeds, by Student's t.",
)


def facts(results: Results) -> list[tuple[str, str]]:
    config, cases = results["config"], done(results)
    ppo = config["ppo"]
    rows = machine_of(config, cases)
    runs = f"{config['bench']['seeds']} seeds of each beta, {layout(config)}"
    rows.append(("runs", f"{runs}, {config['engine']['precision']}"))
    rows.append(("rewards", f"{ppo['reward']} is trained, {ppo['checker']} is watched"))
    if cases:
        answers = config["batch"]["global_batch_size"] * ppo["minibatches"]
        rows.append(("training", f"{len(cases[0]['drawn']):,} iterations of {answers} answers"))
    return rows


def words(case: Mapping[str, Any]) -> tuple[str, str]:
    name = f"beta {case['beta']:g}, seed {case['seed']}"
    if case["status"] != "done":
        return name, f"{case['status']}: {case['error']}"
    last = parts_of(case)[-1]
    return name, f"reward {last.reward:.3f}, checker's {last.checked:.3f}, KL {last.kl:.2f}"


def points(results: Results) -> list[Point]:
    """By beta."""
    return [
        Point(f"beta {row.beta:g}", "done", {"missed by the checker": 1 - row.last.checked})
        for row in rows_of(results)
    ]


PAGE = Page(
    title="How far a learned reward can be followed",
    figure=PLOT,
    shows="reward and checker over the distance from the start",
    claim=CLAIM,
    draw=draw,
    verdict=verdict,
    words=words,
    sections=sections,
    meanings=MEANINGS,
    facts=facts,
)
STUDY = study("over-optimization", PAGE, tables, points)
