"""The search: Ray Tune over trials that are training runs, and what the job keeps of them."""

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from raysft.config.schema import Config
from raysft.runs import events
from raysft.runs.events import Emit
from raysft.runtime.resources import places
from raysft.studies.tune.goal import goal_of
from raysft.studies.tune.record import Record, watcher
from raysft.studies.tune.schedulers import scheduler
from raysft.studies.tune.settings import grid, num_trials, random_draws
from raysft.studies.tune.trial import SCORE, SearchInputs, mode_of, run_trial
from raysft.studies.tune.trials import Trial

# Ray Tune's own switches: Ctrl-C is the job's, reports of log steps may have no score, and what
# it would write beside ours is not needed.
SWITCHES = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run(
    study: SearchInputs, before: Sequence[Trial], total_steps: int, emit: Emit
) -> dict[str, Any]:
    """The whole search, on the Ray cluster this process is connected to. Returns its summary.

    before: trials that --resume found. Those that ended repeat their reports to Ray Tune, so that
    it knows what it knew; the others begin again, with their settings. results.json is written
    whenever a trial begins or ends.
    """
    from ray import tune

    os.environ.update(SWITCHES)
    at_once = room(study.config)
    record = Record(study, [trial for trial in before if trial.finished], emit)
    goal = goal_of(study.config)
    emit(events.Search(num_trials(study.config), at_once, goal.words, goal.higher))
    search, space = searcher(study.config, before)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, study=study, typed_in=os.getcwd()),
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
            metric=SCORE,
            mode=mode_of(study.config),
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


def room(config: Config) -> int:
    """How many trials fit at once into the cluster that this process is connected to."""
    import ray

    return concurrency(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def concurrency(config: Config, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials fit at once: fewer never wait for each other with half their workers.

    Workers are counted node by node, because none is spread over two.
    """
    scaling = config.scaling
    needs = {"CPU": scaling.cpus_per_worker, "GPU": scaling.gpus_per_worker}
    fit = max(1, sum(places(nodes, needs)) // scaling.most)
    return min(fit, config.tune.max_concurrent or fit)


def searcher(config: Config, before: Sequence[Trial]) -> tuple[Any, dict[str, Any] | None]:
    """A search algorithm of Ray Tune's and no space, or none and a space that lists all trials."""
    from ray import tune

    if config.tune.sampler == "tpe":
        from raysft.studies.tune.tpe import make_tpe

        return make_tpe(config, [trial.settings for trial in before]), None
    drawn = grid(config) if config.tune.sampler == "grid" else random_draws(config)
    known = {trial.number: trial.settings for trial in before}
    samples = [
        {"number": number, "settings": known.get(number, settings)}
        for number, settings in enumerate(drawn, start=1)
    ]
    return None, {"sample": tune.grid_search(samples)}
