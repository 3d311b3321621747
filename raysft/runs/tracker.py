"""A service that keeps runs for a team: what it is told of one, and what of it is there already."""

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from raysft.config.of_run import flat
from raysft.runs import rundir
from raysft.runs.provenance import without_secrets


class Line(NamedTuple):
    """Metrics of a step."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Tracked:
    """A run, or a trial of a search, as a service gets to know it."""

    id: str  # ours, which no other run has
    project: str  # what the service files it under
    name: str
    kind: str  # the verb; "trial"
    config: Mapping[str, Any]  # by dotted key
    stamp: Mapping[str, Any]  # of the submission
    folder: Path
    group: str | None = None  # of a trial its search, of a stage its chain

    def trial(self, number: int, settings: Mapping[str, Any]) -> "Tracked":
        """A trial of this search."""
        return Tracked(
            id=f"{self.id}-{number:03}",
            project=self.project,
            name=f"{self.name} trial {number}",
            kind="trial",
            config={**self.config, **settings},
            stamp=self.stamp,
            folder=self.folder,
            group=self.name,
        )


class Tracker(Protocol):
    """A run as one service keeps it. Called in one thread only; any of it may raise anything."""

    def log(self, lines: Sequence[Line]) -> None: ...

    def end(self, status: str, numbers: Mapping[str, float], files: Sequence[Path]) -> None:
        """status: as in summary.json, or of a trial. numbers: of the summary."""


class Kept:
    """What a service has of a run: a file of the run's folder, so that a resumed run goes on there.

    Once the run has begun, only the thread that tells the service writes it.
    """

    def __init__(self, path: Path, project: str) -> None:
        self.path, self.project = path, project
        found: dict[str, Any] = {}
        if path.exists():
            found = rundir.read_json(path)  # raises UserError
        self.id: str = found.get("id") or uuid.uuid4().hex[:16]
        self.step: int = found.get("step", -1)  # of the last line
        self.trials: dict[str, dict[str, Any]] = found.get("trials", {})  # step and status of each

    def trial(self, number: int) -> dict[str, Any]:
        return self.trials.setdefault(str(number), {"step": -1, "status": "waiting"})

    def write(self) -> None:
        """A disk that is full is told by the run itself."""
        with suppress(OSError):
            content = {"id": self.id, "step": self.step, "trials": self.trials}
            rundir.write_json(self.path, content)


def tracked(run_dir: Path, run_id: str, project: str) -> Tracked:
    """The run of this folder. Raises UserError."""
    spec = rundir.read_run(run_dir / rundir.RUN, "verb", "config", "stamp")
    folder = run_dir.resolve()
    is_stage = (folder.parent / rundir.RUN).exists()
    chain = folder.parent.name if is_stage else None
    return Tracked(
        id=run_id,
        project=project,
        name=f"{chain}/{folder.name}" if chain else folder.name,
        kind=spec["verb"],
        config={key: clean(value) for key, value in flat(spec["config"]).items()},
        stamp={key: clean(value) for key, value in spec["stamp"].items()},
        folder=folder,
        group=chain,
    )


def clean(value: Any) -> Any:
    """The config refuses most secrets; a token alone in a web address is left to this."""
    if isinstance(value, list | tuple):
        return [clean(one) for one in value]
    if isinstance(value, dict):
        return {key: clean(one) for key, one in value.items()}
    return without_secrets(value) if isinstance(value, str) else value
