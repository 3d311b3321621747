"""Where the metrics of a run are written. A logger is a function that gets every event."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.runs import rundir
from raysft.runs.events import Emit, Event, Metrics, Sample, Started
from raysft.runs.metrics import scalars

if TYPE_CHECKING:
    from raysft.config.schema import Config


def loggers(config: "Config", run_dir: Path) -> list[Emit]:
    """Those that the config asks for."""
    chosen = [jsonl_logger(run_dir / rundir.METRICS, metrics_line)]
    if config.eval.generate_every_steps:
        chosen.append(jsonl_logger(run_dir / rundir.SAMPLES, sample_line))
    if config.log.tensorboard:
        chosen.append(tensorboard_logger(run_dir / "tensorboard"))
    return chosen


def metrics_line(event: Event) -> dict[str, Any] | None:
    """Of each log step and evaluation."""
    return {"step": event.step, **event.values} if isinstance(event, Metrics) else None


def sample_line(event: Event) -> dict[str, Any] | None:
    """Of each answer that is given while the model is trained."""
    if not isinstance(event, Sample) or event.step is None:
        return None
    return {"step": event.step, **vars(event)}


def jsonl_logger(path: Path, line_of: Callable[[Event], dict[str, Any] | None]) -> Emit:
    """Appends a line for each event that has one.

    Workers that start again, at the step of their checkpoint or at 0, repeat what came after it:
    those lines are dropped.
    """

    def write(event: Event) -> None:
        if isinstance(event, Started):
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            kept = [line for line in lines if event.step and step_of(line) <= event.step]
            path.write_text("".join(line + "\n" for line in kept))
        elif (line := line_of(event)) is not None:
            with path.open("a") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    return write


def step_of(line: str) -> float:
    """The step of a metrics line; infinite for one that a crash or a full disk cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def tensorboard_logger(folder: Path) -> Emit:
    """The same numbers as scalars."""
    board: Any = None

    def write(event: Event) -> None:
        nonlocal board
        if isinstance(event, Started):
            from torch.utils.tensorboard import SummaryWriter

            if board is not None:  # workers start again
                board.close()
            purge_step = event.step + 1 if event.step else None
            board = SummaryWriter(str(folder), purge_step=purge_step)
        elif isinstance(event, Metrics):
            for key, value in scalars(event.values).items():
                board.add_scalar(key, value, event.step)
            board.flush()

    return write
