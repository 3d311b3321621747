"""The line below everything else in a terminal: what is under way, and how far it is."""

import time
from collections import deque
from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

from raysft.runs.events import Event, Metrics, Plan, Progress, Stage, Started, Status
from raysft.runs.metrics import duration, short
from raysft.runs.phases import Phases

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
BAR = 12  # characters
PACE_S = 30.0  # how far back the pace is measured
GAP = "  "
COUNTED = ("training", "evaluation", "answering", "checkpoint")  # phases in which steps are counted


class LiveLine:
    """Sees the events that pass; rich draws it, several times a second."""

    def __init__(self) -> None:
        self.phases = Phases()
        self.step = 0
        self.total: int | None = None
        self.noun = "step"  # what is counted
        self.doing = self.phases.name
        self.since = self.phases.since
        self.newest: Progress | None = None
        self.arrived = 0.0  # when that one came
        self.pace: deque[Progress] = deque()
        self.ends: float | None = None  # when all of something other than steps will have ended

    def see(self, event: Event) -> None:
        before = self.phases.name
        self.phases.see(event)
        if isinstance(event, Status) or self.phases.name != before:
            self.doing = event.message if isinstance(event, Status) else self.phases.name
            self.since = time.monotonic()
        match event:
            case Stage():
                self.step, self.total, self.newest = 0, None, None
                self.doing = f"starting {event.name}"
                self.pace.clear()
            case Plan():
                self.total = event.total_steps
            case Started():
                self.step, self.newest = event.step, None
                self.pace.clear()
            case Metrics():
                self.step = max(self.step, event.step)
            case Progress():
                self.step, self.newest, self.arrived = event.step, event, time.monotonic()
                self.pace.append(event)
                while len(self.pace) > 2 and event.seconds - self.pace[0].seconds > PACE_S:
                    self.pace.popleft()

    def count(
        self, noun: str, done: int, total: int, words: str, seconds_left: float | None = None
    ) -> None:
        """Of something other than steps."""
        self.noun, self.step, self.total, self.doing = noun, done, total, words
        self.ends = None if seconds_left is None else time.monotonic() + seconds_left

    def rates(self) -> tuple[float, float] | None:
        """Steps and tokens a second of late; None of less than one step."""
        if len(self.pace) < 2:
            return None
        first, last = self.pace[0], self.pace[-1]
        seconds = last.seconds - first.seconds
        if last.step == first.step or seconds <= 0:
            return None
        return (last.step - first.step) / seconds, (last.tokens - first.tokens) / seconds

    def parts(self, now: float) -> dict[str, str]:
        """What can be told, by name; in the order in which it stands."""
        since = now - self.since
        found = {"doing": self.doing}
        trains = self.phases.name in COUNTED
        if self.total and ((trains and self.step) or self.noun != "step"):
            of = f"{self.step:,} of {self.total:,}"
            found["count"] = f"step {of}" if self.noun == "step" else f"{of} {self.noun}"
            full = round(BAR * self.step / self.total)
            found["bar"] = "━" * full + "╌" * (BAR - full)
        if self.newest is not None and trains:
            since = self.newest.seconds + now - self.arrived
        found["gone"] = duration(since)
        if self.ends is not None:
            found["left"] = f"about {duration(max(0.0, self.ends - now))} left"
        if self.total and trains and (rates := self.rates()):
            found["left"] = f"{duration((self.total - self.step) / rates[0])} left"
            found["rate"] = f"{short(rates[1])} tokens/s"
        return found

    def text(self, width: int, now: float) -> Text:
        """As much of it as fits into so many columns, the least important part left out first."""
        parts = self.parts(now)
        spinner = SPINNER[int(now * 10) % len(SPINNER)]
        droppable = ["bar", "rate", "gone", "doing", "left"]
        if "count" not in parts:
            droppable = ["gone"]
        elif self.doing == "training":
            droppable = ["doing", "bar", "gone", "rate", "left"]
        for name in droppable:
            if cell_len(f"{spinner} {GAP.join(parts.values())}") < width:
                break
            parts.pop(name, None)
        text = Text(f"{spinner} {GAP.join(parts.values())}", no_wrap=True, overflow="ellipsis")
        text.highlight_regex("━+", "cyan")
        text.highlight_regex("╌+", "dim")
        return text

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterable[Text]:
        yield self.text(options.max_width, time.monotonic())
