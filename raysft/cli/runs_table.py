"""`raysft runs`: one row for each run directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raysft.errors import UserError
from raysft.runs import rundir

STYLES = {"done": "green", "failed": "red", "died": "red", "interrupted": "yellow"}


def runs_table(storage: Path) -> Table:
    """Raises UserError when there is no such folder or no run in it."""
    found = sorted(p.parent for p in storage.glob(f"*/{rundir.RUN}"))
    if not found:
        raise UserError(f"no run in {storage}: `raysft train` makes one")
    table = new_table()
    for run_dir in found:
        table.add_row(*row(run_dir))
    return table


def new_table() -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("run", overflow="fold")
    for heading in ("verb", "status", "submitted\nUTC"):
        table.add_column(heading, no_wrap=True)
    for heading in ("steps", "held-out\nfirst", "\nlast", "exact\nmatch", "tokens/s", "wall s"):
        table.add_column(heading, justify="right")
    return table


def row(run_dir: Path) -> list[str]:
    """Of a damaged file its name, in place of the status."""
    file = rundir.RUN
    try:
        spec = rundir.read_run(run_dir / file, "verb", "stamp")
        utc = str(spec["stamp"].get("utc", ""))
        file, status = rundir.SUMMARY, rundir.status(run_dir)
        summary = {} if status == "planned" else rundir.read_json(run_dir / file)
        if status != "damaged":
            return row_of(run_dir.name, spec["verb"], status, utc, summary)
    except (UserError, TypeError, ValueError):
        pass
    return [run_dir.name, "", f"[red]{file} is damaged[/]"]


def row_of(name: str, verb: str, status: str, utc: str, summary: Mapping[str, Any]) -> list[str]:
    """summary: what is known of it, which may be nothing."""
    style = STYLES.get(status, "default")
    first = summary.get("eval_loss_first")
    last = summary.get("eval_loss_last", summary.get("eval_loss"))  # of a search, its best trial's
    cells = [
        str(summary.get("steps", "")),
        *("" if loss is None else f"{loss:.3f}" for loss in (first, last)),
        f"{summary['exact_match']:.3f}" if summary.get("exact_match") is not None else "",
        f"{summary['tokens_per_second']:,.0f}" if summary.get("tokens_per_second") else "",
        f"{summary['wall_s']:.0f}" if "wall_s" in summary else "",
    ]
    return [name, verb, f"[{style}]{status}[/]", utc[5:16].replace("T", " "), *cells]
