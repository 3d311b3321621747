"""What the restarts of a run cost, read off its events as they pass."""

import time

from raysft.runs.events import (
    Event,
    FirstStep,
    Placed,
    Recovered,
    Restart,
    Started,
    Workers,
)

# What is over when an event comes.
PARTS: dict[type, str] = {
    Placed: "placing workers and starting their processes",
    Workers: "loading libraries and model, making the engine",
    Started: "loading the checkpoint",
    FirstStep: "the first step",
}


class Restarts:
    """Every restart of the workers: why, from which step, how many go on, and how long it took."""

    def __init__(self) -> None:
        self.listed: list[Recovered] = []  # those that came to a first step
        self.reason: str | None = None  # of the one that is under way
        self.since = self.last = 0.0
        self.parts: dict[str, float] = {}
        self.workers: int | None = None
        self.step: int | None = None

    def see(self, event: Event) -> Recovered | None:
        """Takes note of an event; one of its own when a restart is over."""
        now = time.monotonic()
        if isinstance(event, Restart) and self.reason is None:
            self.reason, self.since, self.last = event.message, now, now
            self.parts, self.workers, self.step = {}, None, None
        if self.reason is None or type(event) not in PARTS:
            return None
        self.parts[PARTS[type(event)]] = round(now - self.last, 2)
        self.last = now
        if isinstance(event, Workers):
            self.workers = event.world_size
        if isinstance(event, Started):
            self.step = event.step
        if not isinstance(event, FirstStep):
            return None
        seconds = round(now - self.since, 2)
        over = Recovered(self.reason, self.workers, self.step, seconds, self.parts)
        self.listed.append(over)
        self.reason = None
        return over
