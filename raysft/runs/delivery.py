"""What a service is told, in a thread of its own: the run neither waits for it nor fails by it."""

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from threading import enumerate as enumerate_threads

from raysft.runs import events
from raysft.runs.provenance import without_secrets
from raysft.runs.tracker import Kept, Line, Tracked, Tracker

WAITING = 10_000  # what a service that takes nothing leaves waiting, at most
GATHER_S = 1.0  # lines of so long go in one call
LINES = 20  # of a call, at most
RETRY_S = 60.0
THREAD = "tracker"  # how the names of the threads begin
ENDED = ("done", "stopped", "diverged", "failed")  # of a trial

Open = Callable[[Tracked, Tracker | None], Tracker]


class Begin:
    """The first item: the service makes the run, or finds it again."""


@dataclass(frozen=True)
class End:
    """The last one."""

    status: str
    numbers: Mapping[str, float]
    files: Sequence[Path]


Item = Begin | Line | events.Trial | End


class Delivery:
    """To one service. What it could not take is tried again, every minute and once at the end."""

    def __init__(self, service: str, run: Tracked, kept: Kept, open_tracker: Open) -> None:
        self.run, self.kept, self.open_tracker = run, kept, open_tracker
        self.queue: Queue[Item] = Queue(WAITING)
        self.trouble = ""  # why it took something late or never, the first time
        self.ended = False  # well
        self.last = self.until = kept.step  # the last line put, and those that were there before
        self.ending = Event()
        self.there: Tracker | None = None
        self.trials: dict[int, Tracker] = {}  # those that run
        self.told: dict[int, events.Trial] = {}  # what they said last
        self.put(Begin())
        # A daemon thread: one that hangs does not keep the process.
        self.thread = Thread(target=self.work, name=f"{THREAD} {service}", daemon=True)
        self.thread.start()

    def put(self, item: Item) -> None:
        """Never waits."""
        try:
            self.queue.put_nowait(item)
        except Full:
            self.trouble = self.trouble or "too much waits for it"

    def begin(self, written: Sequence[Line]) -> None:
        """Workers begin, maybe again: what comes up to here repeats itself.

        written: the lines of the run so far.
        """
        for line in written:
            if line.step > self.last:
                self.line(line)
        self.until = self.last

    def line(self, line: Line) -> None:
        if line.step > self.until:
            self.put(line)
            self.last = max(self.last, line.step)

    def end(self, item: End) -> None:
        self.put(item)
        self.ending.set()

    def work(self) -> None:
        pending: list[Item] = []
        while not self.ended:
            pending += self.gather(waits=not pending)
            try:
                while pending:
                    taken = first_lines(pending) or pending[:1]
                    self.send(taken)
                    del pending[: len(taken)]
            except Exception as error:
                self.fail(error)
                if self.ending.is_set():
                    return
                self.ending.wait(RETRY_S)

    def gather(self, *, waits: bool) -> list[Item]:
        """What there is to tell. waits: until there is something."""
        found = [self.queue.get()] if waits else []
        self.ending.wait(GATHER_S)
        while not self.queue.empty():
            found.append(self.queue.get_nowait())
        return found

    def send(self, items: Sequence[Item]) -> None:
        match items[0]:
            case Begin():
                self.kept.write()  # before there is anything to find again
                self.there = self.open_tracker(self.run, None)
            case Line():
                lines = [item for item in items if isinstance(item, Line)]
                self.opened.log(lines)
                self.kept.step = lines[-1].step
                self.kept.write()
            case events.Trial() as trial:
                self.send_trial(trial)
            case End() as end:
                for tracker in self.trials.values():
                    tracker.end(end.status, {}, ())
                self.opened.end(end.status, end.numbers, end.files)
                self.ended = True

    @property
    def opened(self) -> Tracker:
        assert self.there is not None  # Begin comes first
        return self.there

    def send_trial(self, trial: events.Trial) -> None:
        """What changed: a search tells all of a trial again, one that goes on of all trials."""
        kept, before = self.kept.trial(trial.number), self.told.get(trial.number)
        known = numbers_of(before) if before else {}
        values = {key: value for key, value in numbers_of(trial).items() if value != known.get(key)}
        if values and trial.step > kept["step"]:
            self.of_trial(trial).log([Line(trial.step, values)])
            kept["step"] = trial.step
        if trial.status in ENDED and trial.status != kept["status"]:
            self.of_trial(trial).end(trial.status, {}, ())
            del self.trials[trial.number]
        kept["status"] = trial.status
        self.told[trial.number] = trial
        self.kept.write()

    def of_trial(self, trial: events.Trial) -> Tracker:
        if trial.number not in self.trials:
            run = self.run.trial(trial.number, trial.settings)
            self.trials[trial.number] = self.open_tracker(run, self.there)
        return self.trials[trial.number]

    def fail(self, error: Exception) -> None:
        """The traceback goes to job.log, once: a service that is gone would fill it."""
        if self.trouble:
            return
        lines = str(error).strip().splitlines() or [""]
        print(without_secrets(traceback.format_exc()), file=sys.stderr)
        self.trouble = without_secrets(f"{type(error).__name__}: {lines[0]}")


def hanging() -> bool:
    """Whether one has not come to its end."""
    return any(thread.name.startswith(THREAD) for thread in enumerate_threads())


def first_lines(items: Sequence[Item]) -> list[Item]:
    """Those at the head that one call can take."""
    count = 0
    while count < min(LINES, len(items)) and isinstance(items[count], Line):
        count += 1
    return list(items[:count])


def join(deliveries: Sequence[Delivery], seconds: float) -> None:
    """Wait for all of them together, so long at most."""
    deadline = time.monotonic() + seconds
    for one in deliveries:
        one.thread.join(max(0.0, deadline - time.monotonic()))


def numbers_of(trial: events.Trial) -> dict[str, float]:
    """What is logged of a trial, but for what is not known yet."""
    found = {"loss": trial.loss, trial.metric: trial.score}
    if trial.eval_loss is not None:
        found["eval_loss"] = trial.eval_loss
    return {key: value for key, value in found.items() if value is not None}
