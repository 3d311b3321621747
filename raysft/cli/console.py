"""Renders the events of a job for a person, on standard error."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from raysft.cli.show_events import (
    profile_table,
    show_case,
    show_check,
    show_data,
    show_recovery,
    show_sample,
    show_workers,
)
from raysft.cli.terminal import error, fact, stderr, warning
from raysft.runs import events
from raysft.runs.events import Event
from raysft.runs.metrics import columns

STEP_WIDTH = 6


def metrics_heading(event: events.Metrics) -> str:
    headings = "".join(f"{metric.heading:>{metric.width}}" for metric in columns(event.values))
    return f"{'step':>{STEP_WIDTH}}{headings}"


def metrics_row(event: events.Metrics) -> str:
    cells = [f"{event.step:>{STEP_WIDTH},}"]
    for metric in columns(event.values):
        value = event.values.get(metric.key)
        cells.append(f"{'' if value is None else metric.words(value):>{metric.width}}")
    return "".join(cells)


class Renderer:
    """Prints what happens; in a terminal, a line below it shows what is under way."""

    def __init__(self) -> None:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            console=stderr,
            transient=True,
        )
        self.task = self.progress.add_task("starting", total=None)
        self.live = Live(self.progress, console=stderr, transient=True)
        self.heading_due = True
        self.end: events.End | None = None
        self.told = ""  # the mistake that is on the screen already
        self.trials: dict[int, Mapping[str, Any]] = {}  # of a search
        self.num_trials = 0

    def __enter__(self) -> "Renderer":
        if stderr.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self.live.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case events.Status():
                self.say_what_is_done(event.message)
            case events.Mistake():
                self.told = event.message
                error(event.message)
            case events.Warning():
                warning(event.message)
            case events.Plan():
                self.progress.update(self.task, total=event.total_steps)
            case events.Chosen():
                fact("auto", event.message)
            case events.Data():
                show_data(event.facts)
            case events.Workers():
                show_workers(event)
                self.progress.update(self.task, description="training")
            case events.Started():
                self.show_start(event.step)
            case events.Metrics():
                self.show_metrics(event)
            case events.Restart():
                warning(event.message)
                self.progress.update(self.task, description="starting workers again")
            case events.Recovered():
                show_recovery(event)
            case events.Profile():
                stderr.print(profile_table(event))
            case events.Sample():
                show_sample(event)
            case events.Case():
                show_case(event)
            case events.Search():
                self.num_trials = event.trials
                fact("at once", f"{event.at_once} of {event.trials} trials")
                self.progress.update(self.task, total=event.trials)
            case events.Trial():
                self.show_trial(event)
            case events.Check():
                show_check(event)
            case events.End():
                self.end = event
                self.live.stop()

    def say_what_is_done(self, message: str) -> None:
        self.progress.update(self.task, description=message)
        if not stderr.is_terminal:
            stderr.print(f"[dim]{message}[/]")

    def show_start(self, step: int) -> None:
        if step:
            fact("resumed", f"after step {step:,}")
        self.progress.update(self.task, completed=step)

    def show_metrics(self, event: events.Metrics) -> None:
        if self.heading_due:
            self.heading_due = False
            stderr.print(f"[bold]{metrics_heading(event)}[/]", soft_wrap=True)
        stderr.print(metrics_row(event), soft_wrap=True)
        if skipped := event.values.get("skipped_steps"):
            warning(f"fp16 overflowed: {skipped} updates skipped, loss scale lowered")
        self.progress.update(self.task, completed=event.step)

    def show_trial(self, event: events.Trial) -> None:
        """In a terminal a table that changes in its place; elsewhere a line when a trial ends."""
        from raysft.studies.tune.tables import live_table, trial_line

        self.trials[event.number] = vars(event)
        rows = list(self.trials.values())
        running = [row for row in rows if row["status"] == "running"]
        words = ", ".join(f"trial {row['number']}" for row in running)
        self.progress.update(
            self.task, completed=len(rows) - len(running), description=words or "starting a trial"
        )
        if stderr.is_terminal:
            table = live_table(rows, self.num_trials, room=stderr.height - 8)
            self.live.update(Group(table, self.progress))
        elif event.status != "running":
            stderr.print(trial_line(vars(event)), soft_wrap=True)
