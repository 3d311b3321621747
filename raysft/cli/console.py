"""Renders the events of a job for a person, on standard error."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.table import Table

Event = Mapping[str, Any]
stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


def error(message: str) -> None:
    """One red line, and what to do under it."""
    stderr.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def warning(message: str) -> None:
    # Whole in a log, where it is searched; at words in a terminal, where it is read.
    soft_wrap = not stderr.is_terminal
    stderr.print(f"[yellow]warning:[/] {escape(message)}", soft_wrap=soft_wrap)


def findings(rows: Sequence[Mapping[str, Any]]) -> None:
    """Each finding of the audit as a warning that says what to do."""
    for row in rows:
        noun = "record:" if row["records"] == 1 else "records:"
        warning(f"{row['records']:,} {noun} {row['message']}. What to do: {row['advice']}.")


def fact(name: str, value: str) -> None:
    stderr.print(f"  [dim]{name:<14}[/] {escape(value)}", soft_wrap=True)


def seconds(value: float) -> str:
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(spec: str) -> Callable[[Any], str]:
    return lambda value: format(value, spec)


# Heading, key of the metrics event, width, format.
COLUMNS: list[tuple[str, str, int, Callable[[Any], str]]] = [
    ("step", "step", 6, number(",")),
    ("loss", "loss", 8, number(".4f")),
    ("held-out", "eval_loss", 9, number(".4f")),
    ("rate", "lr", 9, number(".2e")),
    ("grad norm", "grad_norm", 10, number(".3f")),
    ("tokens/s", "tokens_per_second", 9, number(",.0f")),
    ("superv./s", "supervised_tokens_per_second", 10, number(",.0f")),
    ("GiB", "peak_memory_gib", 6, number(".2f")),
    ("left", "time_left_s", 8, seconds),
]


def metrics_row(event: Event) -> str:
    cells = []
    for _, key, width, render in COLUMNS:
        value = event.get(key)
        cells.append(f"{'' if value is None else render(value):>{width}}")
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
        self.end: Event | None = None
        self.told = ""  # the mistake that is on the screen already
        self.trials: dict[int, Event] = {}  # of a search
        self.num_trials = 0

    def __enter__(self) -> "Renderer":
        if stderr.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self.live.stop()

    def __call__(self, event: Event) -> None:
        show = getattr(self, f"on_{event['event']}", None)
        if show is not None:
            show(event)

    def on_status(self, event: Event) -> None:
        self.progress.update(self.task, description=event["message"])
        if not stderr.is_terminal:
            stderr.print(f"[dim]{event['message']}[/]")

    def on_mistake(self, event: Event) -> None:
        self.told = event["message"]
        error(self.told)

    def on_plan(self, event: Event) -> None:
        self.progress.update(self.task, total=event["total_steps"])

    def on_warning(self, event: Event) -> None:
        warning(event["message"])

    def on_restart(self, event: Event) -> None:
        warning(event["message"])
        self.progress.update(self.task, description="starting workers again")

    def on_recovered(self, event: Event) -> None:
        fact("going on", f"{seconds(event['seconds'])} after it was noticed")
        for part, took in event["parts"].items():
            fact("", f"{took:4.1f} s  {part}")

    def on_data(self, event: Event) -> None:
        formats = ", ".join(dict.fromkeys(source["format"] for source in event["sources"]))
        fact(
            "records",
            f"{event['num_read']:,} read as {formats}: {event['num_records']:,} to train, "
            f"{event['num_eval_records']:,} held out, {event['num_dropped']:,} left out",
        )
        fact("template", f"{event['template']}, answers end in {event['end_token']}")
        prompt, response = event["prompt_tokens"], event["response_tokens"]
        fact(
            "tokens",
            f"{event['tokens']:,}, {event['supervised_share']:.0%} of them supervised; "
            f"a prompt has {prompt['mean']:,.0f} and a response {response['mean']:,.0f} on average",
        )
        findings(event["findings"])

    def on_workers(self, event: Event) -> None:
        hardware = event["observed"]["gpu"] or event["observed"]["cpu"]
        fact("parameters", f"{event['parameters']:,}")
        workers = event["world_size"]
        fact("hardware", f"{workers} worker{'' if workers == 1 else 's'}, {hardware}")
        optimizer, _, fallback = event["optimizer"].partition("; ")
        fact("optimizer", optimizer)
        if event["products"]:
            fact("bf16 products", event["products"])
        if fallback:
            warning(fallback)
        self.progress.update(self.task, description="training")

    def on_started(self, event: Event) -> None:
        if event["step"]:
            fact("resumed", f"after step {event['step']:,}")
        self.progress.update(self.task, completed=event["step"])

    def on_metrics(self, event: Event) -> None:
        if self.heading_due:
            self.heading_due = False
            headings = "".join(f"{name:>{width}}" for name, _, width, _ in COLUMNS)
            stderr.print(f"[bold]{headings}[/]", soft_wrap=True)
        stderr.print(metrics_row(event), soft_wrap=True)
        if event.get("skipped_steps"):
            warning(
                f"fp16 overflowed: {event['skipped_steps']} updates skipped, loss scale lowered"
            )
        self.progress.update(self.task, completed=event["step"])

    def on_profile(self, event: Event) -> None:
        table = Table(
            box=SIMPLE_HEAD, title=f"Where {event['steps']} steps went", title_justify="left"
        )
        for name in ("", "seconds", "share"):
            table.add_column(name, justify="right" if name else "left", style="" if name else "dim")
        for row in event["rows"]:
            table.add_row(row["phase"], f"{row['seconds']:.3f}", f"{row['share']:.1%}")
        stderr.print(table)

    def on_sample(self, event: Event) -> None:
        stderr.print()
        for name, style in (("instruction", "dim"), ("reference", "cyan"), ("answer", "green")):
            lines = escape(event[name]).splitlines() or [""]
            stderr.print(f"  [dim]{name:<12}[/][{style}]{lines[0]}[/]", soft_wrap=True)
            for line in lines[1:]:
                stderr.print(f"  {'':<12}[{style}]{line}[/]", soft_wrap=True)

    def on_case(self, event: Event) -> None:
        words = event["status"]
        if event["step_times_s"]:
            middle = median(event["step_times_s"])
            words = (
                f"{middle:.2f} s a step, {event['tokens'] / middle:,.0f} tokens/s, "
                f"{event['peak_memory_gib']:.2f} GiB"
            )
        if event["error"]:
            words += f": {event['error']}"
        fact(f"{event['sequences']} x {event['seq_len']:,}", words)

    def on_check(self, event: Event) -> None:
        style = {"pass": "green", "warn": "yellow", "fail": "bold red"}[event["status"]]
        head = f"  [{style}]{event['status']}[/]  {event['name']:<12}  "
        stderr.print(head + escape(event["found"]), soft_wrap=True)
        if event["advice"]:
            stderr.print(f"{'':<22}[dim]what to do: {escape(event['advice'])}[/]", soft_wrap=True)

    def on_search(self, event: Event) -> None:
        self.num_trials = event["trials"]
        fact("at once", f"{event['at_once']} of {event['trials']} trials")
        self.progress.update(self.task, total=event["trials"])

    def on_trial(self, event: Event) -> None:
        """In a terminal a table that changes in its place; elsewhere a line when a trial ends."""
        from raysft.studies.tune.tables import live_table, trial_line

        self.trials[event["number"]] = event
        rows = list(self.trials.values())
        running = [row for row in rows if row["status"] == "running"]
        words = ", ".join(f"trial {row['number']}" for row in running)
        self.progress.update(
            self.task, completed=len(rows) - len(running), description=words or "starting a trial"
        )
        if stderr.is_terminal:
            table = live_table(rows, self.num_trials, room=stderr.height - 8)
            self.live.update(Group(table, self.progress))
        elif event["status"] != "running":
            stderr.print(trial_line(event), soft_wrap=True)

    def keep_end(self, event: Event) -> None:
        """Show nothing, and know how it ended."""
        if event["event"] == "end":
            self.end = event

    def on_end(self, event: Event) -> None:
        self.end = event
        self.live.stop()
        summary = event["summary"]
        if summary["verb"] == "tune" and self.trials:
            from raysft.studies.tune.report import ranked_tables
            from raysft.studies.tune.trials import parse

            stderr.print(ranked_tables(*parse(event["results"])))
        if summary["status"] != "done":
            return
        if summary["verb"] == "train":
            stderr.print(closing_table(summary))
        elif summary["verb"] == "bench seq-len":
            from raysft.studies.seq_len.report import terminal_tables

            for table in terminal_tables(event["results"]):
                stderr.print(table)


def closing_table(summary: Event) -> Table:
    table = Table(box=SIMPLE_HEAD, title=f"{summary['run_dir']}: done", title_justify="left")
    table.add_column("", style="dim")
    table.add_column("first", justify="right")
    table.add_column("last", justify="right")
    for name, key in (("training loss", "train_loss"), ("held-out loss", "eval_loss")):
        first, last = summary[f"{key}_first"], summary[f"{key}_last"]
        table.add_row(name, *("" if v is None else f"{v:.4f}" for v in (first, last)))
    rows = [
        ("steps", "steps", number(",")),
        ("tokens seen", "tokens_seen", number(",")),
        ("supervised tokens seen", "supervised_tokens_seen", number(",")),
        ("tokens/s", "tokens_per_second", number(",.0f")),
        ("supervised tokens/s", "supervised_tokens_per_second", number(",.0f")),
        ("step time, median", "step_time_p50_s", number(".3f")),
        ("step time, 95 %", "step_time_p95_s", number(".3f")),
        ("share of the peak (MFU)", "mfu", number(".1%")),
        ("memory, largest worker, GiB", "peak_memory_gib", number(".2f")),
        ("clipped steps", "clipped_steps", number(",")),
        ("checkpoints", "checkpoints", number(",")),
        ("checkpoints, training waited, s", "checkpoint_stall_s", number(".1f")),
        ("exact match, held out", "exact_match", number(".3f")),
        ("export against engine, logits", "export_logit_difference", number(".1e")),
        ("wall time", "wall_s", seconds),
    ]
    for name, key, render in rows:
        if summary.get(key) is not None:
            table.add_row(name, "", render(summary[key]))
    return table
