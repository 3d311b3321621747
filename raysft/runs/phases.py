"""Where the time of a run goes, read off its events as they pass. Light imports only."""

import time

from raysft.runs.events import (
    Event,
    FirstStep,
    Metrics,
    Placed,
    Progress,
    Restart,
    Started,
    Status,
)

# Statuses that say more than the name of their phase.
NAMES = {"loading tokenizer": "loading tokenizer", "stopping": "stopping", "case ": "measuring"}


def begun_by(event: Event) -> str | None:
    """The phase that begins with this event; None where it begins none."""
    match event:
        case Status():
            return next((name for head, name in NAMES.items() if event.message.startswith(head)),
                        event.message)  # fmt: skip
        case Placed():
            return "loading the model"
        case Started():
            return "first step" if event.step else "first evaluation"
        case Metrics(step=0) | FirstStep():
            return "first step" if isinstance(event, Metrics) else "training"
        case Progress():
            return event.doing
        case Restart():
            return "starting workers again"
    return None


class Phases:
    """Phases that follow each other without a gap; one that comes again goes on counting."""

    def __init__(self) -> None:
        self.name = "starting"
        self.since = time.monotonic()
        self.seconds: dict[str, float] = {}

    def see(self, event: Event) -> None:
        if (name := begun_by(event)) is not None:
            self.begin(name)

    def begin(self, name: str) -> None:
        if name == self.name:
            return
        now = time.monotonic()
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + now - self.since
        self.name, self.since = name, now

    def so_far(self) -> dict[str, float]:
        """Seconds by name, in the order in which they first came; they sum to the time since."""
        now = time.monotonic()
        last = self.seconds.get(self.name, 0.0) + now - self.since
        return {name: round(value, 2) for name, value in {**self.seconds, self.name: last}.items()}
