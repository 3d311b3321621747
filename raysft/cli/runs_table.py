"""`raysft runs`: what lies in run directories, as a table, in full, or removed."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysft.cli import terminal
from raysft.cli.last_words import next_steps
from raysft.errors import UserError
from raysft.runs import lock, rundir
from raysft.runs.metrics import duration, short
from raysft.studies.tables import FittedTable, Heading

STYLES = {
    "done": "green",
    "failed": "red",
    "died": "red",
    "damaged": "red",
    "interrupted": "yellow",
}
STYLES |= {"running": "cyan", "planned": "dim"}
DIED = "its process has ended without a word: see job.log"
WIDEST_NAME = 40  # characters


@dataclass(frozen=True)
class Run:
    """A run directory, as far as it can be read."""

    folder: Path
    verb: str = ""
    status: str = "damaged"
    utc: str = ""  # of its submission
    reason: str = ""  # of its failure
    spec: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """For programs."""
        last = self.summary.get("eval_loss_last", self.summary.get("eval_loss"))
        return {
            "name": self.folder.name, "run_dir": str(self.folder), "verb": self.verb,
            "status": self.status, "submitted": self.utc or None, "reason": self.reason or None,
            "steps": self.summary.get("steps"), "eval_loss_last": last,
            "wall_s": self.summary.get("wall_s"),
        }  # fmt: skip


def read(folder: Path) -> Run:
    """Of a damaged file its name, as the reason."""
    file = rundir.RUN
    try:
        spec = rundir.read_run(folder / file, "verb", "stamp")
        utc = str(spec["stamp"].get("utc", ""))
        file, status = rundir.SUMMARY, rundir.status(folder)
        summary = rundir.read_json(folder / file) if (folder / file).exists() else {}
        if status == "planned" and (folder / lock.FILE).exists():
            status = "running"
        run = Run(folder, spec["verb"], status, utc, reason(status, summary), spec, summary)
        cells(run)
        if status != "damaged":
            return run
    except (UserError, TypeError, ValueError):
        pass
    return Run(folder, reason=f"{file} is damaged")


def reason(status: str, summary: Mapping[str, Any]) -> str:
    if status == "died":
        return DIED
    lines = str(summary.get("error", "")).strip().splitlines() if status == "failed" else []
    return lines[0] if lines else ""


def found_in(storage: Path, *, planned: bool) -> list[Run]:
    """By the time of their submission, the newest last; damaged ones first.

    planned: also those that a dry run has left. Raises UserError when there is none.
    """
    found = [read(file.parent) for file in storage.glob(f"*/{rundir.RUN}")]
    listed = [run for run in found if planned or run.status != "planned"]
    if not listed:
        more = f" but {len(found)} that are planned only: --all lists them" if found else ""
        raise UserError(f"no run in {storage}{more}: `raysft train` makes one")
    return sorted(listed, key=lambda run: (run.utc, run.folder.name))


def print_runs(found: Sequence[Run], storage: Path) -> None:
    table = new_table()
    for run in found:
        table.add_row(short_name(run.folder.name), *cells(run))
    terminal.stdout.print(table)
    for run in found:
        if run.reason:
            line = f"{short_name(run.folder.name)}: {run.reason}"
            terminal.stdout.print(line, markup=False, no_wrap=True, overflow="ellipsis")
    terminal.stderr.print(f"[dim]one of them: raysft runs show {storage}/NAME[/]", soft_wrap=True)


def new_table() -> FittedTable:
    """The columns that go first are those that tell least of how a run went."""
    return FittedTable(
        None,
        [
            Heading("run", "left", folds=True),
            Heading("verb", "left", goes=4),
            Heading("status", "left"),
            Heading("submitted\nUTC", "left"),
            Heading("steps"),
            Heading("held-out\nfirst", goes=3),
            Heading("held-out\nlast"),
            Heading("exact\nmatch", goes=2),
            Heading("tokens/s", goes=5),
            Heading("wall", goes=1),
        ],
    )


def short_name(name: str) -> str:
    """A long one without its middle: its end tells it from others."""
    room = min(WIDEST_NAME, terminal.stdout.width // 3)
    half = room // 2
    return name if len(name) <= room else f"{name[: room - half - 1]}…{name[-half:]}"


def cells(run: Run) -> list[str]:
    """All but the name. Raises TypeError and ValueError of a damaged summary."""
    summary, style = run.summary, STYLES.get(run.status, "default")
    last = summary.get("eval_loss_last", summary.get("eval_loss"))  # of a search, its best trial's
    exact, speed = summary.get("exact_match"), summary.get("tokens_per_second")
    return [
        run.verb,
        f"[{style}]{run.status}[/]",
        run.utc[5:16].replace("T", " "),
        f"{summary['steps']:,}" if "steps" in summary else "",
        *("" if loss is None else f"{loss:.3f}" for loss in (summary.get("eval_loss_first"), last)),
        "" if exact is None else f"{exact:.3f}",
        short(speed) if speed else "",
        duration(summary["wall_s"]) if "wall_s" in summary else "",
    ]


def show(run: Run) -> None:
    """All of it that a person asks for first."""
    from raysft.verbs.registry import VERBS

    verb, summary = VERBS.get(run.verb), run.summary
    terminal.stdout.print(f"[bold]{run.folder}[/]: {run.verb}, {cells(run)[1]}", soft_wrap=True)
    config, stamp = run.spec.get("config", {}), run.spec.get("stamp", {})
    rows = [
        ("submitted", f"{run.utc} by raysft {stamp.get('version', '?')}"),
        ("command", str(stamp.get("command", ""))),
        ("model", str(config.get("model", {}).get("path") or "from scratch")),
        ("data", str(config.get("data", {}).get("path"))),
        ("error", str(summary.get("error", "")) if run.status == "failed" else run.reason),
        ("size", size_words(run.folder)),
    ]
    rows += [
        ("restart", f"{one['reason']}, from step {one['step']}")
        for one in summary.get("restarts", ())
    ]
    for name, value in rows:
        if value:
            terminal.fact(name, value, terminal.stdout)
    if verb is not None and run.status == "done":
        for table in verb.tables(summary, None):
            terminal.stdout.print(table)
    if phases := summary.get("phases_s"):
        table = FittedTable("Where the time went", [Heading("phase", "left"), Heading("seconds")])
        for name, seconds in phases.items():
            table.add_row(name, f"{seconds:,.1f}")
        terminal.stdout.print(table)
    for line in next_steps(run.folder, summary):
        terminal.stdout.print(line, markup=False, soft_wrap=True)


def size_words(folder: Path) -> str:
    size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if size >= 2**power:
            return f"{size / 2**power:,.1f} {unit}"
    return f"{size / 2**10:,.0f} KiB"


def remove(folder: Path) -> None:
    """As its only writer. Raises UserError where another process writes there, or it cannot be."""
    with lock.held(folder, terminal.warning):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise UserError(f"{folder} cannot be removed: {error}") from None
