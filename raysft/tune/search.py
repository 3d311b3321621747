"""The search: Ray Tune over trials that are training runs, and what the job keeps of them."""

import os
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from raysft import rundir
from raysft.config.schema import Config
from raysft.errors import RunError
from raysft.events import Emit, Event
from raysft.tune.report import write_report
from raysft.tune.settings import grid, num_trials, random_draws, ray_domain, within
from raysft.tune.stability import stability
from raysft.tune.trial import Study, run_trial
from raysft.tune.trials import FINISHED, Trial, best_of, folder_of, ranked, write_results

METRIC = {"metric": "eval_loss", "mode": "min"}
REDUCTION = 3  # of asha: at each rung a third goes on
# Ray Tune's own switches: Ctrl-C is the job's, reports of log steps have no held-out loss, and what
# it would write beside ours is not needed.
SWITCHES = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run(study: Study, finished: Sequence[Trial], total_steps: int, emit: Emit) -> Event:
    """The whole search, on the Ray cluster this process is connected to. Returns its summary.

    finished: trials that --resume found ended; their reports are repeated to Ray Tune, so that it
    knows what it knew. results.json is written whenever a trial begins or ends.
    """
    import ray
    from ray import tune

    os.environ.update(SWITCHES)
    at_once = concurrency(
        study.config, [node["Resources"] for node in ray.nodes() if node["Alive"]]
    )
    record = Record(study, finished, emit)
    emit({"event": "search", "trials": num_trials(study.config), "at_once": at_once})
    search, space = searcher(study.config, finished)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, study=study),
            # A trial's workers have resources of their own. Its own process must ask for
            # something, and takes nothing that a worker could want.
            tune.PlacementGroupFactory([{"memory": 1}]),
        ),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler(study.config, total_steps),
            num_samples=num_trials(study.config) if search else 1,
            max_concurrent_trials=at_once,
            **METRIC,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(study.run_dir.resolve()),
            failure_config=tune.FailureConfig(max_failures=1),  # of the trial's own process
            callbacks=[watcher(record)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        record.close()
        shutil.rmtree(study.run_dir / "tune", ignore_errors=True)  # what Ray Tune kept for itself
    return record.summary()


def concurrency(config: Config, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials fit at once: fewer never wait for each other with half their workers.

    Workers are counted node by node, because none is spread over two.
    """
    scaling = config.scaling
    needs = {"CPU": scaling.cpus_per_worker, "GPU": scaling.gpus_per_worker}
    workers = sum(
        min(int(node.get(kind, 0) // need) for kind, need in needs.items() if need)
        for node in nodes
    )
    fit = max(1, workers // scaling.workers)
    return min(fit, config.tune.max_concurrent or fit)


def searcher(config: Config, finished: Sequence[Trial]) -> tuple[Any, dict[str, Any] | None]:
    """A search algorithm of Ray Tune's and no space, or none and a space that lists all trials."""
    from ray import tune

    if config.tune.sampler == "tpe":
        from raysft.tune.tpe import make_tpe

        return make_tpe(config, [trial.settings for trial in finished]), None
    drawn = grid(config) if config.tune.sampler == "grid" else random_draws(config)
    before = {trial.number: trial.settings for trial in finished}
    samples = [
        {"number": number, "settings": before.get(number, settings)}
        for number, settings in enumerate(drawn, start=1)
    ]
    return None, {"sample": tune.grid_search(samples)}


def scheduler(config: Config, total_steps: int) -> Any:
    from ray.tune import schedulers

    time_attr = {"time_attr": "step"}
    match config.tune.scheduler:
        case "asha":
            return schedulers.ASHAScheduler(
                **time_attr,
                max_t=total_steps,
                grace_period=max(1, total_steps // REDUCTION**2),
                reduction_factor=REDUCTION,
            )
        case "median":
            return schedulers.MedianStoppingRule(
                **time_attr,
                grace_period=total_steps / REDUCTION**2,
                min_samples_required=3,
                min_time_slice=float("inf"),  # never pauses a trial: it would begin again
            )
        case "pbt":
            space = config.tune.space

            def inside(point: dict[str, Any]) -> dict[str, Any]:
                """Steps up and down are by a fifth, and may leave the range."""
                settings = point["sample"]["settings"]
                settings |= {key: within(space[key], settings[key]) for key in space}
                return point

            moves = {
                key: list(domain.values) if domain.kind == "choice" else ray_domain(domain)
                for key, domain in space.items()
            }
            random.seed(config.run.seed)
            return schedulers.PopulationBasedTraining(
                **time_attr,
                perturbation_interval=config.eval.every_steps,
                hyperparam_mutations={"sample": {"settings": moves}},
                custom_explore_fn=inside,
                require_attrs=False,
            )
        case _:
            return None


class Record:
    """The trials as the job knows them. The only one that writes results.json."""

    def __init__(self, study: Study, finished: Sequence[Trial], emit: Emit) -> None:
        self.study, self.emit = study, emit
        self.trials = {trial.number: trial for trial in finished}
        self.lines: dict[int, list[Event]] = {}  # reports of trials that run
        self.began: dict[int, float] = {}
        spec = rundir.read_json(study.run_dir / rundir.RUN)
        self.header = {"study": "tune", "stamp": spec["stamp"], "config": spec["config"]}
        for trial in finished:
            self.tell(trial)

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

    def report(self, number: int, line: Event) -> None:
        if number in self.study.replays:
            return
        trial = self.trials[number]
        if line["status"] in ("diverged", "failed"):
            trial.diverged_step, trial.error = line.get("diverged_step"), line.get("error")
        else:
            # A trial that starts again repeats its steps, or goes on from where another was.
            step = line["step"]
            self.lines[number] = [one for one in self.lines[number] if one["step"] < step]
            trial.curve = [point for point in trial.curve if point[0] < step]
            self.lines[number].append(line)
            if "observed" in line:
                self.header["observed"] = line["observed"]
            trial.step, trial.total_steps = line["step"], line["total_steps"]
            trial.num_restarts = line["num_restarts"]
            trial.loss = line.get("loss", trial.loss)
            if "eval_loss" in line:
                trial.curve.append((line["step"], line["eval_loss"]))
        trial.status = line["status"]
        self.tell(trial)

    def end(self, number: int, error: str | None = None) -> None:
        if number in self.study.replays:
            return
        trial = self.trials[number]
        if error:
            trial.status, trial.error = "failed", error
        elif trial.status == "running":
            trial.status = "stopped"
        trial.stability = stability(self.lines[number])
        trial.wall_s = round(time.monotonic() - self.began[number], 2)
        self.save(trial)
        summary = {
            "status": trial.status, "verb": "train", "run_dir": str(self.folder(number)),
            "steps": trial.step, "wall_s": trial.wall_s, "num_restarts": trial.num_restarts,
            "eval_loss_first": trial.curve[0][1] if trial.curve else None,
            "eval_loss_last": trial.eval_loss, "error": trial.error, **trial.stability,
        }  # fmt: skip
        if self.folder(number).is_dir():
            rundir.write_json(self.folder(number) / rundir.SUMMARY, summary)

    def folder(self, number: int) -> Path:
        return folder_of(self.study.run_dir, number)

    def save(self, trial: Trial) -> None:
        write_results(self.study.run_dir, self.header, self.trials.values())
        self.tell(trial)

    def tell(self, trial: Trial) -> None:
        self.emit(
            {
                "event": "trial", "number": trial.number, "settings": trial.settings,
                "status": trial.status, "step": trial.step, "total_steps": trial.total_steps,
                "loss": trial.loss, "eval_loss": trial.eval_loss, "error": trial.error,
                "diverged_step": trial.diverged_step,
            }
        )  # fmt: skip

    def close(self) -> None:
        """Write what there is, whether the search ended or was interrupted."""
        for trial in self.trials.values():
            if trial.status == "running":
                trial.status = "interrupted"
        write_results(self.study.run_dir, self.header, self.trials.values())
        if any(trial.curve for trial in self.trials.values()):
            write_report(self.study.run_dir, self.header, list(self.trials.values()))

    def summary(self) -> Event:
        """Raises RunError when no trial went to its end."""
        counts = {
            status: sum(trial.status == status for trial in self.trials.values())
            for status in ("done", *FINISHED[1:], "failed")
        }
        best = best_of(self.trials.values())
        if best is None:
            told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
            error = next((trial.error for trial in self.trials.values() if trial.error), None)
            advice = f": {error}" if error else ": lower the range of optim.lr in tune.space"
            raise RunError(f"no trial went to its end ({told}){advice}")
        rates = [trial.wall_s for trial in self.trials.values() if trial.wall_s]
        return {
            "results": str(self.study.run_dir / rundir.RESULTS),
            "report": str(self.study.run_dir / rundir.REPORT),
            "trials": counts,
            "steps": sum(trial.step for trial in self.trials.values()),
            "best": best.number,
            "best_settings": best.settings,
            "best_config": str(self.study.run_dir / rundir.BEST),
            "eval_loss": best.eval_loss,
            "ranking": [trial.number for trial in ranked(self.trials.values())],
            "trial_wall_s": median(rates) if rates else None,
        }


def watcher(record: Record) -> Any:
    """Ray Tune's view of the trials, handed on to `record`."""
    from ray import tune

    class Watcher(tune.Callback):  # type: ignore[misc]
        def on_trial_start(self, *, trial: Any, **_: Any) -> None:
            record.start(trial.config["sample"])

        def on_trial_result(self, *, trial: Any, result: Event, **_: Any) -> None:
            record.report(trial.config["sample"]["number"], result)

        def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
            record.end(trial.config["sample"]["number"])

        def on_trial_error(self, *, trial: Any, **_: Any) -> None:
            lines = (trial.error_msg or "the trial's process died").strip().splitlines()
            record.end(trial.config["sample"]["number"], error=lines[-1])

    return Watcher()
