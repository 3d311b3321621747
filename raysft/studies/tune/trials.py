"""The trials of a search as results.json keeps them: one writer, the job."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raysft.errors import UserError
from raysft.runs import rundir
from raysft.studies.results import read, write
from raysft.studies.tune.goal import Goal

# How trials are ranked: by status first, and by their score among equals.
STATUSES = ("done", "stopped", "running", "interrupted", "waiting", "failed", "diverged")
FINISHED = ("done", "stopped", "diverged")  # is not run again by --resume
TRIALS = "trials"  # the folder of their run directories
Settings = dict[str, float | int | str | bool]  # key of the config: its value in one trial
COLUMNS = ("clipped_share", "loss_spike", "grad_norm_p50", "grad_norm_p99")  # of `stability`


@dataclass
class Trial:
    number: int  # from 1
    settings: Settings
    status: str = "waiting"
    step: int = 0
    total_steps: int | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)  # step, score: see Goal
    loss: float | None = None  # of the last log step
    stability: dict[str, float | None] = field(default_factory=dict)
    diverged_step: int | None = None
    num_restarts: int = 0
    wall_s: float | None = None
    error: str | None = None
    changes: list[tuple[int, Settings]] = field(default_factory=list)  # by pbt: from which step

    @property
    def finished(self) -> bool:
        return self.status in FINISHED

    @property
    def score(self) -> float | None:
        """The last one; None before the first step."""
        return self.curve[-1][1] if self.curve and self.curve[-1][0] else None


def words(settings: Settings) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings.items())


def folder_of(run_dir: Path, number: int) -> Path:
    return run_dir / TRIALS / f"{number:03}"


def ranked(trials: Iterable[Trial], goal: Goal) -> list[Trial]:
    """Best first; diverged ones last, those that held out longest before the others."""

    def place(trial: Trial) -> tuple[float, ...]:
        status = STATUSES.index(trial.status)
        if trial.status == "diverged":
            return status, -float(trial.diverged_step or 0), trial.number
        cost = float("inf") if trial.score is None else goal.cost(trial.score)
        return status, cost, trial.number

    return sorted(trials, key=place)


def best_of(trials: Iterable[Trial], goal: Goal) -> Trial | None:
    """The trial with the best score among those that went to their end."""
    first = next(iter(ranked(trials, goal)), None)
    return first if first is not None and first.status == "done" else None


def write_results(run_dir: Path, header: Mapping[str, Any], trials: Iterable[Trial]) -> None:
    rows = [asdict(trial) for trial in sorted(trials, key=lambda t: t.number)]
    write(run_dir, {**header, TRIALS: rows})


def read_results(path: Path) -> tuple[Path, dict[str, Any], list[Trial]]:
    """A results.json, or that of a run directory: the file, its header and its trials.

    Raises UserError: it is not there, or is none of `raysft tune`.
    """
    file, results = read(path)
    try:
        header, trials = parse(results)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} holds no results of `raysft tune`") from None
    return file, header, trials


def parse(results: Mapping[str, Any]) -> tuple[dict[str, Any], list[Trial]]:
    """The header and the trials of a results.json."""
    header = {key: value for key, value in results.items() if key != TRIALS}
    return header, [trial_of(row) for row in results[TRIALS]]


def read_before(run_dir: Path) -> list[Trial]:
    """The trials that a killed or interrupted search has begun, in order; none of a new one."""
    return read_results(run_dir)[2] if (run_dir / rundir.RESULTS).exists() else []


def trial_of(row: Mapping[str, Any]) -> Trial:
    curve = [(int(step), float(loss)) for step, loss in row["curve"]]
    changes = [(int(step), settings) for step, settings in row["changes"]]
    return Trial(**{**row, "curve": curve, "changes": changes})
