"""What the job keeps of a search while it runs, from what Ray Tune tells of its trials."""

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from ray import tune

from raysft.errors import RunError
from raysft.runs import events, rundir
from raysft.runs.events import Emit
from raysft.studies.results import header
from raysft.studies.tune.goal import goal_of
from raysft.studies.tune.report import STUDY, write_report
from raysft.studies.tune.stability import stability
from raysft.studies.tune.trial import SCORE, SearchInputs
from raysft.studies.tune.trials import FINISHED, Trial, best_of, folder_of, ranked, write_results


class Record:
    """The trials as the job knows them. The only one that writes results.json."""

    def __init__(self, study: SearchInputs, finished: Sequence[Trial], emit: Emit) -> None:
        self.study, self.emit, self.goal = study, emit, goal_of(study.config)
        self.trials = {trial.number: trial for trial in finished}
        self.lines: dict[int, list[dict[str, Any]]] = {}  # reports of trials that run
        self.began: dict[int, float] = {}
        self.said: dict[int, str] = {}  # the status in the last report
        self.placements: dict[int, list[Any]] = {}
        self.header = header(STUDY.name, study.run_dir)
        for trial in finished:
            self.tell(trial)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its callbacks, for a way to resume that is not ours."""
        return {}

    def start(self, sample: Mapping[str, Any]) -> None:
        number = sample["number"]
        if number in self.study.replays:
            return
        settings = dict(sample["settings"])
        self.began.setdefault(number, time.monotonic())
        self.lines.setdefault(number, [])
        trial = self.trials.setdefault(number, Trial(number, settings))
        if trial.settings != settings:  # pbt has changed them
            trial.changes.append((trial.step, settings))
            trial.settings = settings
        trial.status = "running"
        self.save(trial)

    def report(self, number: int, line: Mapping[str, Any]) -> None:
        if number in self.study.replays:
            return
        if "placement" in line:
            self.placements.setdefault(number, []).append(line["placement"])
            return
        trial = self.trials[number]
        if line["status"] in ("diverged", "failed"):
            trial.diverged_step, trial.error = line.get("diverged_step"), line.get("error")
        else:
            # A trial that starts again repeats its steps, or goes on from where another was.
            step = line["step"]
            self.lines[number] = [one for one in self.lines[number] if one["step"] < step]
            trial.curve = [point for point in trial.curve if point[0] < step]
            self.lines[number].append(dict(line))
            if "observed" in line:
                self.header["observed"] = line["observed"]
            trial.step, trial.total_steps = line["step"], line["total_steps"]
            trial.num_restarts = line["num_restarts"]
            trial.loss = line.get("loss", trial.loss)
            if SCORE in line:
                trial.curve.append((line["step"], line[SCORE]))
        self.said[number] = line["status"]
        self.tell(trial)

    def end(self, number: int, error: str | None = None) -> None:
        if number in self.study.replays:
            return
        self.free(number)
        trial = self.trials[number]
        said = self.said.get(number, "running")
        trial.status = "stopped" if said == "running" else said
        if error:
            trial.status, trial.error = "failed", error
        trial.stability = stability(self.lines[number])
        trial.wall_s = round(time.monotonic() - self.began[number], 2)
        self.save(trial)
        summary = {
            "status": trial.status, "verb": self.study.config.tune.verb,
            "run_dir": str(self.folder(number)), "steps": trial.step, "wall_s": trial.wall_s,
            "num_restarts": trial.num_restarts,
            f"{self.goal.metric}_first": trial.curve[0][1] if trial.curve else None,
            f"{self.goal.metric}_last": trial.score, "error": trial.error, **trial.stability,
        }  # fmt: skip
        folder = self.folder(number)
        shutil.rmtree(folder / rundir.CHECKPOINTS, ignore_errors=True)  # gigabytes a trial
        if folder.is_dir():
            rundir.write_json(folder / rundir.SUMMARY, summary)

    def free(self, number: int) -> None:
        """Its workers, which Ray frees by itself only where it has a dashboard."""
        for placement in self.placements.pop(number, []):
            placement.free()

    def folder(self, number: int) -> Path:
        return folder_of(self.study.run_dir, number)

    def save(self, trial: Trial) -> None:
        write_results(self.study.run_dir, self.header, self.trials.values())
        self.tell(trial)

    def tell(self, trial: Trial) -> None:
        self.emit(
            events.Trial(
                number=trial.number, settings=trial.settings, status=trial.status, step=trial.step,
                total_steps=trial.total_steps, loss=trial.loss,
                eval_loss=trial.score if self.goal.metric == "eval_loss" else None,
                error=trial.error, diverged_step=trial.diverged_step, score=trial.score,
                metric=self.goal.metric,
            )
        )  # fmt: skip

    def close(self) -> None:
        """Write what there is, whether the search ended or was interrupted."""
        for trial in self.trials.values():
            if trial.status == "running":
                trial.status = "interrupted"
        write_results(self.study.run_dir, self.header, self.trials.values())
        if any(trial.curve for trial in self.trials.values()):
            write_report(self.study.run_dir, self.header, list(self.trials.values()))

    def summary(self) -> dict[str, Any]:
        """Raises RunError when no trial went to its end."""
        counts = {
            status: sum(trial.status == status for trial in self.trials.values())
            for status in ("done", *FINISHED[1:], "failed")
        }
        best = best_of(self.trials.values(), self.goal)
        if best is None:
            told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
            error = next((trial.error for trial in self.trials.values() if trial.error), None)
            advice = f": {error}" if error else ": lower the range of optim.lr in tune.space"
            raise RunError(f"no trial went to its end ({told}){advice}")
        rates = [trial.wall_s for trial in self.trials.values() if trial.wall_s]
        return {
            "trials": counts,
            "steps": sum(trial.step for trial in self.trials.values()),
            "best": best.number,
            "best_settings": best.settings,
            "trains": self.study.config.tune.verb,
            "goal": self.goal.words,
            "score": best.score,
            self.goal.metric: best.score,
            "ranking": [trial.number for trial in ranked(self.trials.values(), self.goal)],
            "trial_wall_s": median(rates) if rates else None,
        }


def reason(error_file: str | None) -> str:
    """The last line of what Ray Tune keeps of a trial's errors, which the storage gets later."""
    text = ""
    if error_file is not None:
        with suppress(OSError):
            text = Path(error_file).read_text(errors="replace")
    return (text.strip().splitlines() or ["the trial's process died"])[-1].strip()


def watcher(record: Record) -> Any:
    """Ray Tune's view of the trials, handed on to `record`."""

    class Watcher(tune.Callback):  # type: ignore[misc]
        def on_trial_start(self, *, trial: Any, **_: Any) -> None:
            record.start(trial.config["sample"])

        def on_trial_result(self, *, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
            record.report(trial.config["sample"]["number"], result)

        def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
            record.end(trial.config["sample"]["number"])

        def on_step_end(self, *, trials: Any, **_: Any) -> None:
            for trial in trials:
                if trial.status in (trial.PAUSED, trial.PENDING):  # by pbt, or to begin again
                    record.free(trial.config["sample"]["number"])

        def on_trial_error(self, *, trial: Any, **_: Any) -> None:
            record.end(trial.config["sample"]["number"], error=reason(trial.error_file))

    return Watcher()
