"""What the verbs that learn from preference pairs share."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from raysft.studies.tables import FittedTable, Heading
from raysft.verbs import plan, train
from raysft.verbs.pair_config import for_pairs
from raysft.verbs.verb import Plan, Results, Run, Summary, Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config


def equations(config: "Config", objective: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """objective: the rows that say what is minimised."""
    from raysft.train import schedule

    config = for_pairs(config)
    size = config.batch.global_batch_size
    most = 2 * size * config.batch.seq_len
    return [
        plan.model_equation(config),
        *objective,
        ("global batch", plan.batch_equation(config).replace("records", "pairs", 1)),
        (
            "tokens a step",
            f"at most {most:,} = {size} pairs x 2 x {config.batch.seq_len} seq_len",
        ),
        ("steps", plan.steps_equation(config)),
        ("learning rate", schedule.equation(config)),
        *plan.where_and_how(config),
    ]


def tables(summary: Summary, results: Results | None) -> Iterable[FittedTable]:
    """As of a training run, and what is known of the held-out pairs before and after."""
    yield from train.tables(summary, results)
    if summary["status"] != "done" or not summary.get("measures_last"):
        return
    headings = [Heading("", "left", folds=True, style="dim"), Heading("first"), Heading("last")]
    table = FittedTable("\nheld-out pairs", headings)
    for row in measures(summary):
        table.add_row(*row)
    yield table


def measures(summary: Summary) -> list[tuple[str, str, str]]:
    """Of the held-out pairs: what it is, before the first step, and at the end."""
    rows = []
    for key, last in summary.get("measures_last", {}).items():
        first = summary.get("measures_first", {}).get(key)
        before, after = ("" if value is None else f"{value:.4f}" for value in (first, last))
        rows.append((key.removeprefix("eval_").replace("_", " "), before, after))
    return rows


def closing(summary: Summary) -> list[tuple[str, str, str]]:
    rows = measures(summary)
    of_pairs = [(f"held-out pairs, {name}", first, last) for name, first, last in rows]
    return [*train.closing(summary), *of_pairs]


def done(summary: Summary) -> str:
    before, after = (summary[f"measures_{when}"].get("eval_accuracy") for when in ("first", "last"))
    heldout = "" if after is None else f", held-out pairs right {before:.3f} to {after:.3f}"
    return f"done: {summary['steps']} steps{heldout}; model in {summary['model_dir']}"


def verb(name: str, help: str, example: str, plan: Plan, run: Run, section: str) -> Verb:
    """A training run but for what is said of its pairs.

    section: of the config, which must not change within a run.
    """
    return replace(
        train.TRAIN,
        name=name,
        help=help,
        example=example,
        plan=plan,
        run=run,
        check_resume=partial(train.check_resume, fixed=(*train.FIXED, section)),
        done=done,
        tables=tables,
        write_report=partial(train.write_report, rows=closing),
        pairs=lambda config: True,  # noqa: ARG005
    )
