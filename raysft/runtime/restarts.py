"""What the restarts of a run cost, read off its events as they pass."""

import time
from typing import Any

from raysft.runs.events import Event

# What is over when an event comes.
PARTS = {
    "placed": "placing workers and starting their processes",
    "workers": "loading libraries and model, making the engine",
    "started": "loading the checkpoint",
    "first_step": "the first step",
}


class Restarts:
    """Every restart of the workers: why, from which step, how many go on, and how long it took."""

    def __init__(self) -> None:
        self.listed: list[dict[str, Any]] = []  # those that came to a first step
        self.reason: str | None = None  # of the one that is under way
        self.since = self.last = 0.0
        self.parts: dict[str, float] = {}
        self.facts: dict[str, Any] = {}

    def see(self, event: Event) -> Event | None:
        """Takes note of an event; one of its own when a restart is over."""
        now, kind = time.monotonic(), event["event"]
        if kind == "restart" and self.reason is None:
            self.reason, self.since, self.last = event["message"], now, now
            self.parts, self.facts = {}, {}
        if self.reason is None or kind not in PARTS:
            return None
        self.parts[PARTS[kind]] = round(now - self.last, 2)
        self.last = now
        if kind == "workers":
            self.facts["workers"] = event["world_size"]
        if kind == "started":
            self.facts["step"] = event["step"]
        if kind != "first_step":
            return None
        facts = {"reason": self.reason, **self.facts, "seconds": round(now - self.since, 2)}
        self.listed.append(facts | {"parts": self.parts})
        self.reason = None
        return {"event": "recovered"} | self.listed[-1]
