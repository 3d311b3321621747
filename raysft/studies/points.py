"""The points of a study side by side, as many as the cluster has room for: Ray Tune runs them."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raysft.config.schema import Config
from raysft.errors import RunError, UserError
from raysft.runs import events, rundir
from raysft.runs.events import Emit
from raysft.runtime.trainer import Placement
from raysft.studies.point_runs import Inputs, Placed
from raysft.studies.results import finished, header, write
from raysft.studies.study import Study
from raysft.studies.tune.record import reason
from raysft.studies.tune.search import SWITCHES, concurrency

FOLDER = "points"  # of what their runs leave, in the run directory of the study
Point = Mapping[str, Any]  # what it differs in from the others: plain values
# Of a point, the folder for its run, and who is to be told where its workers are: to its results.
Measure = Callable[[Point, Path, Placed], dict[str, Any]]


def run_study(
    study: Study,
    points: Sequence[Point],
    measure: Callable[[Inputs, Point, Path, Placed], dict[str, Any]],
    inputs: Inputs,
    emit: Emit,
) -> dict[str, Any]:
    """All points, on the Ray cluster this process is connected to. Returns the study's summary.

    results.json, whose `cases` they are, is written after each; those that it has already, and that
    ended well, are not measured again.
    """
    config, run_dir = inputs.config, inputs.run_dir
    before = finished(run_dir)
    results = header(study.name, run_dir) | {"cases": before}
    order = [tuple(point.values()) for point in points]

    def ended(result: dict[str, Any]) -> None:
        cases = [*results["cases"], result]
        results["cases"] = sorted(cases, key=lambda case: order.index(values(case, points[0])))
        write(run_dir, results)
        emit(events.Case(result, study.name))

    known = {values(case, points[0]) for case in before}
    left = [point for point in points if tuple(point.values()) not in known]
    if left:
        run_points(left, partial(measure, inputs), config, run_dir, ended)
    study.write_report(results, run_dir)
    return {
        "results": str(run_dir / rundir.RESULTS),
        "report": str(run_dir / rundir.REPORT),
        "verdict": study.verdict(results),
        "cases": {
            status: sum(case["status"] == status for case in results["cases"])
            for status in ("done", "failed")
        },
    }


def values(case: Mapping[str, Any], point: Point) -> tuple[Any, ...]:
    """What a case is told from the others by."""
    return tuple(case[key] for key in point)


def run_points(
    points: Iterable[Point],
    measure: Measure,
    config: Config,
    run_dir: Path,
    ended: Callable[[dict[str, Any]], None],
) -> None:
    """Measure each point in a process of its own, on the Ray cluster this one is connected to.

    ended: gets each result as it comes: the point, its `status` ("done" or "failed"), its `error`,
    and what `measure` returned. A point that fails is a result like any other.
    """
    import ray
    from ray import tune

    os.environ.update(SWITCHES)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    listed = [{"number": number, **point} for number, point in enumerate(points)]
    folder = run_dir.resolve() / FOLDER
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_point, measure=measure, folder=folder),
            tune.PlacementGroupFactory([{"memory": 1}]),  # the workers have resources of their own
        ),
        param_space={"point": tune.grid_search(listed)},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrency(config, nodes)),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(run_dir.resolve()),
            callbacks=[watcher(ended)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        for name in ("tune", FOLDER):  # what Ray Tune kept for itself, and what runs were cut off
            shutil.rmtree(run_dir / name, ignore_errors=True)


def run_point(space: dict[str, Any], measure: Measure, folder: Path) -> None:
    """The function that Ray Tune calls. It reports where the workers are, and the result."""
    from ray import tune

    point = {key: value for key, value in space["point"].items() if key != "number"}
    own = folder / f"{space['point']['number']:03}"
    try:
        found = measure(point, own, lambda placement: tune.report({"placement": placement}))
        tune.report({"result": {**point, "status": "done", "error": None, **found}})
    except (RunError, UserError) as error:
        tune.report({"result": {**point, "status": "failed", "error": str(error)}})
    finally:
        shutil.rmtree(own, ignore_errors=True)


class Ended:
    """Hands on each result, and frees the workers of a point that has ended, which Ray does by
    itself only where it has a dashboard."""

    def __init__(self, ended: Callable[[dict[str, Any]], None]) -> None:
        self.ended = ended
        self.placements: dict[int, list[Placement]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its callbacks, for a way to resume that is not ours."""
        return {}

    def report(self, number: int, line: Mapping[str, Any]) -> None:
        if "placement" in line:
            self.placements.setdefault(number, []).append(line["placement"])
        elif "result" in line:
            self.ended(dict(line["result"]))

    def free(self, number: int) -> None:
        for placement in self.placements.pop(number, []):
            placement.free()


def watcher(ended: Callable[[dict[str, Any]], None]) -> Any:
    """Ray Tune's view of the points."""
    from ray import tune

    keeper = Ended(ended)

    class Watcher(tune.Callback):  # type: ignore[misc]
        def on_trial_result(self, *, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
            keeper.report(trial.config["point"]["number"], result)

        def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
            keeper.free(trial.config["point"]["number"])

        def on_trial_error(self, *, trial: Any, **_: Any) -> None:
            point = dict(trial.config["point"])
            keeper.free(point.pop("number"))
            keeper.ended({**point, "status": "failed", "error": reason(trial.error_file)})

    return Watcher()
