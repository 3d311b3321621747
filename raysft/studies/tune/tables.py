"""The trials as a table: while they run, and ranked at the end. Light imports only."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from raysft.studies.tables import Column, FittedTable, terminal_table

STYLES = {
    "done": "green",
    "stopped": "dim",
    "running": "bold cyan",
    "interrupted": "yellow",
    "failed": "red",
    "diverged": "red",
}

Row = Mapping[str, Any]  # number, status, settings, and the keys below


def of(key: str) -> Callable[[Row], Any]:
    return lambda row: row.get(key)


def measured(goal: str) -> list[Column]:
    """Of a trial that has ended. goal: what trials are ranked by, in words."""
    return [
        Column(goal, of("score"), ".4f"),
        Column("step", of("step"), ","),
        Column("steps clipped", of("clipped_share"), ".0%", goes=3),
        Column("loss spike", of("loss_spike"), ".2f", goes=4),
        Column("norm p50", of("grad_norm_p50"), ".3g", goes=1),
        Column("norm p99", of("grad_norm_p99"), ".3g", goes=2),
    ]


def live(goal: str) -> list[Column]:
    """Of one that runs."""
    return [
        Column("step", of("step"), ","),
        Column("of", of("total_steps"), ",", goes=1),
        Column("training loss", of("loss"), ".4f", goes=2),
        Column(goal, of("score"), ".4f"),
    ]


def columns(keys: Iterable[str], measured: Sequence[Column]) -> list[Column]:
    """Number and status, a column for each setting, and what was measured."""
    keys = list(keys)
    settings = [
        Column(heading, setting(key), goes=len(measured) + len(keys) - place)
        for place, (key, heading) in enumerate(zip(keys, headings(keys), strict=True))
    ]
    number, status = Column("trial", of("number")), Column("status", of("status"), justify="left")
    return [number, status, *settings, *measured]


def setting(key: str) -> Callable[[Row], str]:
    return lambda row: value_text(row["settings"].get(key, ""))


def headings(keys: Iterable[str]) -> list[str]:
    """Of the settings: without their section, unless that leaves two alike."""
    keys = list(keys)
    short = [key.rpartition(".")[2] for key in keys]
    return [s if short.count(s) == 1 else key for s, key in zip(short, keys, strict=True)]


def value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def trials_table(
    title: str, rows: Sequence[Row], keys: Sequence[str], measured: Sequence[Column]
) -> FittedTable:
    """Narrow: headings are broken at their words."""
    shown = [
        column._replace(heading=column.heading.replace("_", "\n").replace(" ", "\n"))
        for column in columns(keys, measured)
    ]
    return terminal_table(title, shown, rows, lambda row: STYLES.get(row["status"], "default"))


def trial_line(row: Row, goal: str) -> str:
    """One line for a log. goal: what trials are ranked by, in words."""
    settings = ", ".join(f"{key} {value_text(value)}" for key, value in row["settings"].items())
    score = "" if row["score"] is None else f", {goal} {row['score']:.4f}"
    error = f": {row['error']}" if row["error"] else ""
    words = f"trial {row['number']:>3} {row['status']} after {row['step']:,} steps{score}"
    return f"  {words}; {settings}{error}"


def live_table(
    rows: Sequence[Row], total: int, room: int, goal: str, *, higher: bool
) -> FittedTable:
    """What runs, what ended, and the best so far; of many, the last that fit into `room` lines.
    goal: what trials are ranked by, in words; higher: is better."""
    ended = [row for row in rows if row["status"] not in ("running", "waiting")]
    done = [row for row in ended if row["status"] == "done" and row["score"] is not None]
    title = f"{len(ended)} of {total} trials ended"
    if done:
        best = (max if higher else min)(done, key=lambda row: row["score"])
        title += f"; best so far: trial {best['number']}, {goal} {best['score']:.4f}"
    keys = list(rows[0]["settings"])
    return trials_table(title, rows[-max(1, room) :], keys, live(goal))


def ranked_table(rows: Sequence[Row], keys: Sequence[str], goal: str) -> FittedTable:
    return trials_table("Trials, best first", rows, keys, measured(goal))
