"""The events of a run, from the workers to files and to whoever watches. Light imports only."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

Event = dict[str, Any]
Emit = Callable[[Event], None]


class Writer(Protocol):
    def __call__(self, event: Event) -> None: ...


def jsonl_writer(path: Path) -> Writer:
    """Appends the metrics of each log step and evaluation.

    Workers that start again, at the step of their checkpoint or at 0, repeat what came after it:
    those lines are dropped.
    """

    def write(event: Event) -> None:
        if event["event"] == "started":
            lines = path.read_text().splitlines() if path.exists() else []
            kept = [line for line in lines if event["step"] and step_of(line) <= event["step"]]
            path.write_text("".join(line + "\n" for line in kept))
        elif event["event"] == "metrics":
            with path.open("a") as file:
                file.write(json.dumps(without(event, "event")) + "\n")

    return write


def step_of(line: str) -> float:
    """The step of a metrics line; infinite for one that a crash or a full disk cut short."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return math.inf


def tensorboard_writer(folder: Path) -> Writer:
    """The same numbers as scalars."""
    board: Any = None

    def write(event: Event) -> None:
        nonlocal board
        if event["event"] == "started":
            from torch.utils.tensorboard import SummaryWriter

            if board is not None:  # workers start again
                board.close()
            purge_step = event["step"] + 1 if event["step"] else None
            board = SummaryWriter(str(folder), purge_step=purge_step)
        if event["event"] != "metrics":
            return
        for key, value in without(event, "event", "step", "time_left_s").items():
            if value is not None:
                board.add_scalar(key, value, event["step"])
        board.flush()

    return write


def without(event: Mapping[str, Any], *keys: str) -> Event:
    return {key: value for key, value in event.items() if key not in keys}
