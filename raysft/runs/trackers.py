"""The services that a run is told to besides its folder. Light imports only."""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from raysft.errors import UserError
from raysft.runs import events, rundir
from raysft.runs.delivery import Delivery, End, Open, join
from raysft.runs.events import Emit, Event
from raysft.runs.loggers import step_of
from raysft.runs.metrics import scalars
from raysft.runs.mlflow_tracker import open_mlflow
from raysft.runs.tracker import Kept, Line, tracked
from raysft.runs.wandb_tracker import open_wandb

if TYPE_CHECKING:
    from raysft.config.schema import Config

BEGINS = (events.Plan, events.Search, events.Trial, events.Case)
ENDS_WITHIN_S = 20.0  # what a run waits at its end for what is still under way


class Service(NamedTuple):
    title: str
    files_under: str
    package: str  # to install, where the extra of its name is not
    open: Open


# By their key of [log], which is the name of their module and of the package's extra too.
SERVICES = {
    "wandb": Service("Weights & Biases", "project", "wandb", open_wandb),
    "mlflow": Service("MLflow", "experiment", "mlflow-skinny", open_mlflow),
}


def chosen(config: "Config") -> dict[str, str]:
    """The services that the config asks for, and what each files the run under."""
    named = {key: getattr(config.log, key) for key in SERVICES}
    return {key: name for key, name in named.items() if name is not None}


def words(config: "Config") -> str:
    """Where a run is logged to, for its plan; empty where that is its folder alone."""
    return ", ".join(
        f"{SERVICES[key].title} ({SERVICES[key].files_under} {name})"
        for key, name in chosen(config).items()
    )


def require_installed(config: "Config") -> None:
    """Raises UserError where this machine lacks the package of a service."""
    for key in chosen(config):
        if find_spec(key) is None:
            raise UserError(
                f"log.{key}: {SERVICES[key].title} is not installed here: pip install "
                f"'raysft[{key}]' (or {SERVICES[key].package}), or leave log.{key} out"
            )


def known(config: "Config", run_dir: Path) -> dict[str, Kept]:
    """What each service that the config asks for has of this run.

    Raises UserError where one is not installed, or the file about it is damaged.
    """
    require_installed(config)
    return {key: Kept(run_dir / f"{key}.json", name) for key, name in chosen(config).items()}


class Trackers:
    """Hands events on to `emit` and to the services; what these have to say comes in between.

    Called in one thread. Raises what `emit` raises, and nothing else.
    """

    def __init__(self, kept: Mapping[str, Kept], run_dir: Path, emit: Emit) -> None:
        self.kept, self.run_dir, self.emit = kept, run_dir, emit
        self.deliveries: dict[str, Delivery] = {}
        self.warned: set[str] = set()

    def __call__(self, event: Event) -> None:
        self.emit(event)
        for key in self.kept:
            try:
                self.hand_on(key, event)
            except Exception as error:
                self.warn(key, f"lacks a part of this run: {type(error).__name__}: {error}")
        for key, delivery in self.deliveries.items():
            if delivery.trouble:
                tells = "The run goes on, and tells it later"
                self.warn(key, f"takes nothing yet: {delivery.trouble}. {tells}")

    def hand_on(self, key: str, event: Event) -> None:
        # Of a run that does not come so far, because its input is wrong, no service hears.
        if isinstance(event, BEGINS) and key not in self.deliveries:
            kept = self.kept[key]
            run = tracked(self.run_dir, kept.id, kept.project)
            self.deliveries[key] = Delivery(key, run, kept, SERVICES[key].open)
        match event:
            case events.Started():
                self.deliveries[key].begin(written(self.run_dir / rundir.METRICS))
            case events.Metrics():
                self.deliveries[key].line(Line(event.step, scalars(event.values)))
            case events.Trial():
                self.deliveries[key].put(event)

    def warn(self, key: str, what: str) -> None:
        if key not in self.warned:
            self.warned.add(key)
            self.emit(events.Warning(f"log.{key}: {SERVICES[key].title} {what}"))

    def end(self, summary: Mapping[str, Any]) -> None:
        """With the last numbers and the report, where a service knows of the run."""
        files = [self.run_dir / rundir.REPORT, *sorted(self.run_dir.glob("*.png"))]
        numbers = {f"summary/{key}": float(value) for key, value in numeric(summary).items()}
        last = End(summary["status"], numbers, [file for file in files if file.exists()])
        for delivery in self.deliveries.values():
            delivery.end(last)
        try:
            join(list(self.deliveries.values()), ENDS_WITHIN_S)
            waited = f"it had not taken everything {ENDS_WITHIN_S:.0f} s after the end"
        except KeyboardInterrupt:
            waited = "it was interrupted"
        for key, delivery in self.deliveries.items():
            if not delivery.ended:
                self.warn(key, f"lacks a part of this run: {delivery.trouble or waited}")


def numeric(summary: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in summary.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def written(metrics: Path) -> Sequence[Line]:
    """The lines of metrics.jsonl, which a service that was away or is new may lack."""
    lines = metrics.read_text(errors="replace").splitlines() if metrics.exists() else []
    whole = [json.loads(line) for line in lines if step_of(line) < float("inf")]
    return [Line(int(line["step"]), scalars(line)) for line in whole]
