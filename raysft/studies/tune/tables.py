"""The trials as a table: while they run, and ranked at the end. Light imports only."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

STYLES = {
    "done": "green",
    "stopped": "dim",
    "running": "bold cyan",
    "interrupted": "yellow",
    "failed": "red",
    "diverged": "red",
}


def form(spec: str) -> Callable[[Any], str]:
    return lambda value: format(value, spec)


# Heading, key of a row, how it is written.
MEASURED: list[tuple[str, str, Callable[[Any], str]]] = [
    ("held-out loss", "eval_loss", form(".4f")),
    ("step", "step", form(",")),
    ("steps clipped", "clipped_share", form(".0%")),
    ("loss spike", "loss_spike", form(".2f")),
    ("norm p50", "grad_norm_p50", form(".3g")),
    ("norm p99", "grad_norm_p99", form(".3g")),
]
LIVE: list[tuple[str, str, Callable[[Any], str]]] = [
    ("step", "step", form(",")),
    ("of", "total_steps", form(",")),
    ("training loss", "loss", form(".4f")),
    ("held-out loss", "eval_loss", form(".4f")),
]

Row = Mapping[str, Any]  # number, status, settings, and the keys above


def headings(keys: Iterable[str]) -> list[str]:
    """Of the settings: without their section, unless that leaves two alike."""
    keys = list(keys)
    short = [key.rpartition(".")[2] for key in keys]
    return [s if short.count(s) == 1 else key for s, key in zip(short, keys, strict=True)]


def value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cells(row: Row, keys: Sequence[str], columns: Sequence[tuple[str, str, Any]]) -> list[str]:
    measured = ["" if row.get(k) is None else render(row[k]) for _, k, render in columns]
    settings = [value_text(row["settings"].get(key, "")) for key in keys]
    return [str(row["number"]), str(row["status"]), *settings, *measured]


def trials_table(
    title: str, rows: Sequence[Row], keys: Sequence[str], columns: Sequence[tuple[str, str, Any]]
) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", padding=0, pad_edge=False)
    table.add_column("trial", justify="right")
    table.add_column("status", no_wrap=True)
    for heading in headings(keys):
        table.add_column(heading.replace("_", "\n"), justify="right")
    for heading, _, _ in columns:
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for row in rows:
        table.add_row(*cells(row, keys, columns), style=STYLES.get(row["status"], "default"))
    return table


def trial_line(row: Row) -> str:
    """One line for a log."""
    settings = ", ".join(f"{key} {value_text(value)}" for key, value in row["settings"].items())
    loss = "" if row["eval_loss"] is None else f", held-out loss {row['eval_loss']:.4f}"
    error = f": {row['error']}" if row["error"] else ""
    words = f"trial {row['number']:>3} {row['status']} after {row['step']:,} steps{loss}"
    return f"  {words}; {settings}{error}"


def live_table(rows: Sequence[Row], total: int, room: int) -> Table:
    """What runs, what ended, and the best so far; of many, the last that fit into `room` lines."""
    ended = [row for row in rows if row["status"] not in ("running", "waiting")]
    done = [row for row in ended if row["status"] == "done"]
    title = f"{len(ended)} of {total} trials ended"
    if done:
        best = min(done, key=lambda row: row["eval_loss"])
        title += f"; best so far: trial {best['number']}, held-out loss {best['eval_loss']:.4f}"
    keys = list(rows[0]["settings"])
    return trials_table(title, rows[-max(1, room) :], keys, LIVE)


def ranked_table(rows: Sequence[Row], keys: Sequence[str]) -> Table:
    return trials_table("Trials, best first", rows, keys, MEASURED)
