"""One trial: a training run in a run directory of its own, that reports to Ray Tune."""

import math
import shutil
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.errors import NotFinite, RunError, UserError
from raysft.runs import events, rundir, snapshot
from raysft.runs.events import Event
from raysft.runs.loggers import loggers
from raysft.runtime.train_loop import work_in
from raysft.studies.divergence import has_diverged
from raysft.studies.tune.goal import Trains, goal_of
from raysft.studies.tune.settings import trial_config
from raysft.studies.tune.trials import Trial, folder_of

REGISTERED_WITHIN_S = 60.0
REPORTED = ("loss", "grad_norm", "clipped_steps")  # of the metrics
SCORE = "score"  # what Ray Tune and the trials' curves call it


def mode_of(config: Config) -> str:
    return "max" if goal_of(config).higher else "min"


@dataclass(frozen=True)
class SearchInputs:
    """What all trials share."""

    config: Config
    trains: Trains
    train: TokenDataset
    heldout: TokenDataset
    template: Any
    run_dir: Path
    stamp: dict[str, Any]
    replays: dict[int, list[dict[str, Any]]]  # of trials that ended before


def run_trial(point: dict[str, Any], study: SearchInputs, typed_in: str) -> None:
    """Train with the settings of `point["sample"]` and report: the function that Ray Tune calls.

    Every metrics event is a report; the last one says how the trial ended. typed_in: the folder in
    which the search was.
    """
    from ray import tune

    work_in(typed_in)  # Ray Tune starts it in a folder of its own
    number, settings = point["sample"]["number"], point["sample"]["settings"]
    if number in study.replays:
        for report in study.replays[number]:
            tune.report(report)
        return
    folder = folder_of(study.run_dir, number)
    start = tune.get_checkpoint()  # under pbt, of this trial or of a better one
    try:
        config = trial_config(study.config, settings)
        prepare_folder(folder, config, study, anew=start is None)
        train(config, folder, study, start_from=Path(start.path) if start else None)
    except NotFinite as error:
        # At step 0: no scheduler sets this report beside those of trials that went well.
        tune.report({"status": "diverged", "step": 0, "diverged_step": error.step})
    except (RunError, UserError) as error:
        tune.report({"status": "failed", "step": 0, "error": str(error)})


def replay(trial: Trial) -> list[dict[str, Any]]:
    """The reports of a trial that has ended, as a scheduler needs them."""
    reports: list[dict[str, Any]] = [
        {"status": trial.status, "step": step, SCORE: score} for step, score in trial.curve
    ]
    if trial.status == "diverged":
        reports.append({"status": "diverged", "step": 0})
    return reports


def prepare_folder(folder: Path, config: Config, study: SearchInputs, *, anew: bool) -> None:
    """A run directory without checkpoints; what an interrupted attempt left there is removed."""
    shutil.rmtree(folder if anew else folder / rundir.CHECKPOINTS, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    raw = config.model_dump(mode="json")
    spec = {"verb": config.tune.verb, "config": raw, "stamp": study.stamp}
    rundir.write_json(folder / rundir.RUN, spec)


def train(config: Config, folder: Path, study: SearchInputs, *, start_from: Path | None) -> None:
    """Raises NotFinite where the trial has diverged, and RunError where it failed."""
    from ray import tune

    from raysft.model.load import load_model_config
    from raysft.runtime.fit import fit

    config = study.trains.as_computed(config)
    objective = study.trains.objective(config)
    hf_config = load_model_config(config, study.template, scalar=objective.scalar)
    report = TrialReport(folder, config, study, hf_config.vocab_size)
    fit(
        config, study.train, study.heldout, hf_config, study.template.tokenizer, folder, report,
        objective=objective, exports=False, start_from=start_from,
        placed=lambda placement: tune.report(
            {"status": "running", "step": 0, "placement": placement}
        ),
    )  # fmt: skip
    report.end()


class TrialReport:
    """Writes the metrics of a trial, and reports each of them to Ray Tune."""

    def __init__(self, folder: Path, config: Config, study: SearchInputs, vocabulary: int) -> None:
        self.folder = folder
        self.vocabulary = vocabulary
        self.newest: dict[str, Any] = {}  # report that was sent
        self.holds = study.config.tune.scheduler == "pbt"
        self.goal = goal_of(study.config)
        self.latest: deque[float] = deque(maxlen=self.goal.lines)
        self.loggers = loggers(config, folder)
        self.first_loss = 0.0  # before the first step
        self.step = -1  # of the last report
        self.total_steps: int | None = None
        self.starts = 0
        self.observed: Mapping[str, Any] = {}
        self.held: dict[str, Any] = {}  # under pbt a report with its checkpoint waits for that

    def __call__(self, event: Event) -> None:
        """Raises NotFinite where the trial has diverged."""
        for log in self.loggers:
            log(event)
        if isinstance(event, events.Plan):
            self.total_steps = event.total_steps
        elif isinstance(event, events.Workers):
            self.starts, self.observed = self.starts + 1, event.observed
        elif isinstance(event, events.Checkpoint) and self.held:
            self.send_held(event.step)
        # Workers that start again repeat what came after their checkpoint.
        elif isinstance(event, events.Metrics) and event.step > self.step:
            self.report(event)

    def report(self, event: events.Metrics) -> None:
        from ray import tune

        self.step, value = event.step, event.values.get(self.goal.metric)
        kept: dict[str, Any] = {
            key: event.values[key] for key in REPORTED if event.values.get(key) is not None
        }
        if self.step == 0:
            kept["observed"] = self.observed
            self.first_loss = value or 0.0
        elif value is not None and self.has_diverged(value):
            raise NotFinite(f"the {self.goal.words} is {value:.3g} at step {self.step}", self.step)
        if value is not None:
            self.latest.append(value)
            kept[SCORE] = fmean(self.latest)
        kept |= {
            "step": self.step,
            "status": "done" if self.step == self.total_steps else "running",
            "total_steps": self.total_steps,
            "num_restarts": self.starts - 1,
        }
        if self.holds and self.step and value is not None:
            self.held = kept
        else:
            self.newest = kept
            tune.report(kept)

    def end(self) -> None:
        """It has ended by itself: before its last step by eval.patience or ppo.stop_kl."""
        from ray import tune

        if self.newest.get("status") == "running":
            tune.report(self.newest | {"status": "done"})

    def has_diverged(self, value: float) -> bool:
        if not self.goal.diverges:
            return not math.isfinite(value)
        return has_diverged(value, self.first_loss, self.vocabulary)

    def send_held(self, step: int) -> None:
        from ray import tune

        saved = newest_checkpoint(self.folder, step)
        tune.report(self.held, checkpoint=tune.Checkpoint.from_directory(str(saved)))
        self.newest, self.held = self.held, {}


def newest_checkpoint(folder: Path, step: int) -> Path:
    """The one of this step, which Ray Train registers a moment after its workers wrote it.

    Raises RunError when it does not come.
    """
    deadline = time.monotonic() + REGISTERED_WITHIN_S
    while time.monotonic() < deadline:
        if found := snapshot.checkpoints_by_step(folder).get(step):
            return found
        time.sleep(0.1)
    raise RunError(f"the checkpoint of step {step} was not registered in {folder}")
