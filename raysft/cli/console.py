"""Renders the events of a job for a person, on standard error."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape

from raysft.cli.live_line import LiveLine
from raysft.cli.metrics_table import MetricsTable
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
from raysft.runs.metrics import duration


class Renderer:
    """Prints what happens; in a terminal, a line below it shows what is under way."""

    def __init__(self) -> None:
        self.line = LiveLine()
        self.live = Live(self.line, console=stderr, transient=True, refresh_per_second=8)
        self.table = MetricsTable()
        self.end: events.End | None = None
        self.told = ""  # the mistake that is on the screen already
        self.trials: dict[int, Mapping[str, Any]] = {}  # of a search
        self.search = events.Search(0, 0)
        self.points = 0  # of a study

    def __enter__(self) -> "Renderer":
        if stderr.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self.live.stop()

    def __call__(self, event: Event) -> None:
        self.line.see(event)
        match event:
            case events.Status():
                if not stderr.is_terminal:
                    stderr.print(f"[dim]{escape(event.message)}[/]", soft_wrap=True)
                elif event.message.startswith("stopping"):  # tells what a second Ctrl-C does
                    stderr.print(f"[dim]{escape(event.message)}[/]")
            case events.Mistake():
                self.told = event.message
                error(event.message)
            case events.Warning():
                warning(event.message)
            case events.Stage():
                self.table = MetricsTable()
                heading = f"stage {event.number} of {event.of}: {event.name}"
                stderr.print(f"\n[bold]{heading}[/] to {escape(event.run_dir)}", soft_wrap=True)
            case events.Plan():
                self.table.total_steps = event.total_steps
            case events.Chosen():
                fact("auto", event.message)
            case events.Data():
                show_data(event.facts)
            case events.Workers():
                show_workers(event)
            case events.Started() if event.step:
                fact("resumed", f"after step {event.step:,}")
            case events.Metrics():
                self.show_metrics(event)
            case events.Restart():
                warning(event.message)
            case events.Recovered():
                show_recovery(event)
            case events.Profile():
                stderr.print(profile_table(event))
            case events.Sample(step=None):
                show_sample(event)
            case events.Case():
                show_case(event)
            case events.Points():
                self.show_points(event)
            case events.Search():
                self.search = event
                fact("at once", f"{event.at_once} of {event.trials} trials")
                self.line.count("trials ended", 0, event.trials, "starting a trial")
            case events.Trial():
                self.show_trial(event)
            case events.Check():
                show_check(event)
            case events.End():
                self.end = event
                self.live.stop()

    def show_metrics(self, event: events.Metrics) -> None:
        for line in self.table.lines(event, stderr.width if stderr.is_terminal else None):
            stderr.print(line, soft_wrap=True)
        if (exact := event.values.get("exact_match")) is not None:
            fact("exact match", f"{exact:.3f} of the held-out answers after step {event.step:,}")
        if skipped := event.values.get("skipped_steps"):
            warning(f"fp16 overflowed: {skipped} updates skipped, loss scale lowered")

    def show_points(self, event: events.Points) -> None:
        """In a terminal the line below tells how far it is, elsewhere a line after each."""
        of = f"{event.ended:,} of {event.total:,}"
        seconds = event.seconds_left
        if not self.points:
            self.points = event.total
            before = f"; {event.ended:,} were there already" if event.ended else ""
            fact("at once", f"{event.at_once:,} of {event.total:,} points{before}")
        elif seconds and not stderr.is_terminal:
            stderr.print(f"[dim]{of} points, about {duration(seconds)} left[/]")
        self.line.count("points", event.ended, event.total, "measuring", seconds)

    def show_trial(self, event: events.Trial) -> None:
        """In a terminal a table that changes in its place; elsewhere a line when a trial ends."""
        from raysft.studies.tune.tables import live_table, trial_line

        score = event.eval_loss if event.score is None else event.score  # or of a version before
        self.trials[event.number] = vars(event) | {"score": score}
        rows = list(self.trials.values())
        running = [row for row in rows if row["status"] == "running"]
        words = ", ".join(f"trial {row['number']}" for row in running)
        ended, total = len(rows) - len(running), self.search.trials
        self.line.count("trials ended", ended, total, words or "starting a trial")
        if stderr.is_terminal:
            table = live_table(
                rows, self.search.trials, stderr.height - 8, self.search.goal,
                higher=self.search.higher,
            )  # fmt: skip
            self.live.update(Group(table, self.line))
        elif event.status != "running":
            line = trial_line(self.trials[event.number], self.search.goal)
            stderr.print(line, soft_wrap=True)
