"""One trial: a training run in a run directory of its own, that reports to Ray Tune."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.errors import NotFinite, RunError, UserError
from raysft.runs import rundir
from raysft.runs.events import Event, jsonl_writer, tensorboard_writer
from raysft.studies.tune.settings import trial_config
from raysft.studies.tune.stability import has_diverged
from raysft.studies.tune.trials import Trial, folder_of

REGISTERED_WITHIN_S = 60.0
REPORTED = ("step", "loss", "grad_norm", "clipped_steps", "eval_loss")  # of a metrics event


@dataclass(frozen=True)
class Study:
    """What all trials share."""

    config: Config
    train: TokenDataset
    heldout: TokenDataset
    template: Any
    run_dir: Path
    stamp: dict[str, Any]
    replays: dict[int, list[Event]]  # reports of trials that have ended before: not run again


def run_trial(point: dict[str, Any], study: Study) -> None:
    """Train with the settings of `point["sample"]` and report: the function that Ray Tune calls.

    Every metrics event is a report; the last one says how the trial ended.
    """
    from ray import tune

    number, settings = point["sample"]["number"], point["sample"]["settings"]
    if number in study.replays:
        for event in study.replays[number]:
            tune.report(event)
        return
    config = trial_config(study.config, settings)
    folder = folder_of(study.run_dir, number)
    start = tune.get_checkpoint()  # under pbt, of this trial or of a better one
    prepare_folder(folder, config, study, anew=start is None)
    try:
        train(config, folder, study, start_from=Path(start.path) if start else None)
    except NotFinite as error:
        # At step 0: no scheduler sets this report beside those of trials that went well.
        tune.report({"status": "diverged", "step": 0, "diverged_step": error.step})
    except (RunError, UserError) as error:
        tune.report({"status": "failed", "step": 0, "error": str(error)})


def replay(trial: Trial) -> list[Event]:
    """The reports of a trial that has ended, as a scheduler needs them."""
    events: list[Event] = [
        {"status": trial.status, "step": step, "eval_loss": loss} for step, loss in trial.curve
    ]
    if trial.status == "diverged":
        events.append({"status": "diverged", "step": 0})
    return events


def prepare_folder(folder: Path, config: Config, study: Study, *, anew: bool) -> None:
    """A run directory without checkpoints; what an interrupted attempt left there is removed."""
    shutil.rmtree(folder if anew else folder / rundir.CHECKPOINTS, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    spec = {"verb": "train", "config": config.model_dump(mode="json"), "stamp": study.stamp}
    rundir.write_json(folder / rundir.RUN, spec)


def train(config: Config, folder: Path, study: Study, *, start_from: Path | None) -> None:
    """Raises NotFinite where the trial has diverged, and RunError where it failed."""
    from ray import tune

    from raysft.model.load import load_model_config
    from raysft.runtime import fit

    hf_config = load_model_config(config, study.template)
    writers = [jsonl_writer(folder / rundir.METRICS)]
    if config.log.tensorboard:
        writers.append(tensorboard_writer(folder / "tensorboard"))
    first, reported, total_steps, starts, observed = 0.0, -1, None, 0, {}
    held: Event = {}  # under pbt a report with its checkpoint waits for that

    def report(event: Event) -> None:
        nonlocal first, reported, total_steps, starts, observed, held
        for write in writers:
            write(event)
        if event["event"] == "plan":
            total_steps = event["total_steps"]
        if event["event"] == "workers":
            starts, observed = starts + 1, event["observed"]
        if event["event"] == "checkpoint" and held:
            saved = newest_checkpoint(folder, event["step"])
            tune.report(held, checkpoint=tune.Checkpoint.from_directory(str(saved)))
            held = {}
        # Workers that start again repeat what came after their checkpoint.
        if event["event"] != "metrics" or event["step"] <= reported:
            return
        reported = event["step"]
        loss: float | None = event.get("eval_loss")
        kept = {key: event[key] for key in REPORTED if event.get(key) is not None}
        if reported == 0:
            kept["observed"] = observed
            first = loss or 0.0
        elif loss is not None and has_diverged(loss, first, hf_config.vocab_size):
            raise NotFinite(f"the held-out loss is {loss:.3g} at step {reported}", reported)
        status = "done" if reported == total_steps else "running"
        kept |= {"status": status, "total_steps": total_steps, "num_restarts": starts - 1}
        if study.config.tune.scheduler == "pbt" and reported and loss is not None:
            held = kept
        else:
            tune.report(kept)

    fit.fit(
        config, study.train, study.heldout, hf_config, study.template.tokenizer, folder, report,
        exports=False, start_from=start_from,
        placed=lambda placement: tune.report(
            {"status": "running", "step": 0, "placement": placement}
        ),
    )  # fmt: skip


def newest_checkpoint(folder: Path, step: int) -> Path:
    """The one of this step, which Ray Train registers a moment after its workers wrote it.

    Raises RunError when it does not come.
    """
    deadline = time.monotonic() + REGISTERED_WITHIN_S
    while time.monotonic() < deadline:
        if found := rundir.checkpoints_by_step(folder).get(step):
            return found
        time.sleep(0.1)
    raise RunError(f"the checkpoint of step {step} was not registered in {folder}")
