"""What the verbs that learn from preference pairs share."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raysft.verbs import plan, train
from raysft.verbs.pair_config import for_pairs
from raysft.verbs.verb import Results, Summary

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


def tables(summary: Summary, results: Results | None) -> Iterable[Table]:
    """As of a training run, and what is known of the held-out pairs before and after."""
    yield from train.tables(summary, results)
    if summary["status"] != "done" or not summary.get("measures_last"):
        return
    table = Table(box=SIMPLE_HEAD, title="held-out pairs", title_justify="left")
    for name in ("", "first", "last"):
        table.add_column(name, justify="right" if name else "left", style="" if name else "dim")
    for key, last in summary["measures_last"].items():
        cells = (summary["measures_first"].get(key), last)
        name = key.removeprefix("eval_").replace("_", " ")
        table.add_row(name, *("" if value is None else f"{value:.4f}" for value in cells))
    yield table


def done(summary: Summary) -> str:
    before, after = (summary[f"measures_{when}"].get("eval_accuracy") for when in ("first", "last"))
    heldout = "" if after is None else f", held-out pairs right {before:.3f} to {after:.3f}"
    return f"done: {summary['steps']} steps{heldout}; model in {summary['model_dir']}"
