"""The points of a study side by side, as many as the cluster has room for: Ray Tune runs them."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raysft.config.schema import Config
from raysft.errors import RunError, UserError
from raysft.runs import events, rundir
from raysft.runs.events import Emit
from raysft.runtime.train_loop import work_in
from raysft.runtime.trainer import Placement
from raysft.studies.pace import Pace
from raysft.studies.point_runs import Inputs, Placed
from raysft.studies.results import finished, header, write
from raysft.studies.study import Study
from raysft.studies.tune.record import reason
from raysft.studies.tune.search import SWITCHES, room

FOLDER = "points"  # of what their runs leave, in the run directory of the study
Point = Mapping[str, Any]  # what it differs in from the others: plain values
Found = dict[str, Any]  # what is measured of a point
Tell = Callable[[Point, Found], None]
# Of one point: the folder for its run, and who is to be told where its workers are.
MeasureOne = Callable[[Inputs, Point, Path, Placed], Found]
# Of those that share a folder and workers; each is told of when it is measured.
Measure = Callable[[Inputs, Sequence[Point], Path, Placed, Tell], None]


def one_by_one(measure: MeasureOne) -> Measure:
    def measure_all(
        inputs: Inputs, points: Sequence[Point], folder: Path, placed: Placed, tell: Tell
    ) -> None:
        for point in points:
            tell(point, measure(inputs, point, folder, placed))

    return measure_all


def run_study(
    study: Study,
    points: Sequence[Point],
    measure: Measure,
    inputs: Inputs,
    emit: Emit,
    shares: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """All points, on the Ray cluster this process is connected to. Returns the study's summary.

    shares: points that are equal in these are measured together, in their order; None: each by
    itself. results.json, whose `cases` they are, is written after each; those that it has already,
    and that ended well, are not measured again.
    """
    config, run_dir = inputs.config, inputs.run_dir
    before = finished(run_dir)
    results = header(study.name, run_dir) | {"cases": before}
    order = [tuple(point.values()) for point in points]
    known = {values(case, points[0]) for case in before}
    left = [point for point in points if tuple(point.values()) not in known]
    pace = Pace(len(before), len(left), room(config))

    def ended(result: dict[str, Any]) -> None:
        cases = [*results["cases"], result]
        results["cases"] = sorted(cases, key=lambda case: order.index(values(case, points[0])))
        write(run_dir, results)
        emit(events.Case(result, study.name))
        emit(pace.after(1))

    if left:
        emit(pace.after(0))
        batches = together(left, tuple(points[0]) if shares is None else shares)
        run_batches(batches, partial(measure, inputs), config, run_dir, ended)
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


def together(points: Sequence[Point], keys: Sequence[str]) -> list[list[Point]]:
    """Those that are equal in these keys, in the order in which they come first."""
    found: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        found.setdefault(tuple(point[key] for key in keys), []).append(point)
    return list(found.values())


def run_batches(
    batches: Sequence[Sequence[Point]],
    measure: Callable[[Sequence[Point], Path, Placed, Tell], None],
    config: Config,
    run_dir: Path,
    ended: Callable[[Found], None],
) -> None:
    """Measure each batch in a process of its own, on the Ray cluster this one is connected to.

    ended: gets each result as it comes: the point, its `status` ("done" or "failed"), its `error`,
    and what was measured. A point that fails is a result like any other.
    """
    from ray import tune

    os.environ.update(SWITCHES)
    folder = run_dir.resolve() / FOLDER
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(
                run_batch, batches=batches, measure=measure, folder=folder, typed_in=os.getcwd()
            ),
            tune.PlacementGroupFactory([{"memory": 1}]),  # the workers have resources of their own
        ),
        param_space={"number": tune.grid_search(list(range(len(batches))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=room(config)),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(run_dir.resolve()),
            callbacks=[watcher(batches, ended)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        for name in ("tune", FOLDER):  # what Ray Tune kept for itself, and what runs were cut off
            shutil.rmtree(run_dir / name, ignore_errors=True)


def run_batch(
    space: Mapping[str, int],
    batches: Sequence[Sequence[Point]],
    measure: Callable[[Sequence[Point], Path, Placed, Tell], None],
    folder: Path,
    typed_in: str,
) -> None:
    """The function that Ray Tune calls. It reports where the workers are, and the results."""
    from ray import tune

    work_in(typed_in)  # Ray Tune starts it in a folder of its own
    number = space["number"]
    left, own = list(batches[number]), folder / f"{number:03}"
    since = time.monotonic()

    def tell(point: Point, found: Found) -> None:
        """Once: workers that were lost begin with the first point again."""
        nonlocal since
        if point in left:
            left.remove(point)
            now = time.monotonic()
            ended = {"status": "done", "error": None, "seconds": round(now - since, 1)}
            since = now
            tune.report({"result": {**point, **ended, **found}})

    try:
        measure(left.copy(), own, lambda placement: tune.report({"placement": placement}), tell)
    except (RunError, UserError) as error:
        for point in left:
            tune.report({"result": failed(point, str(error))})
    finally:
        shutil.rmtree(own, ignore_errors=True)


def failed(point: Point, error: str) -> Found:
    return {**point, "status": "failed", "error": error}


class Ended:
    """Hands on each result, and frees the workers of a batch that has ended, which Ray does by
    itself only where it has a dashboard."""

    def __init__(self, batches: Sequence[Sequence[Point]], ended: Callable[[Found], None]) -> None:
        self.left = [list(batch) for batch in batches]
        self.ended = ended
        self.placements: dict[int, list[Placement]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its callbacks, for a way to resume that is not ours."""
        return {}

    def report(self, number: int, line: Mapping[str, Any]) -> None:
        if "placement" in line:
            self.placements.setdefault(number, []).append(line["placement"])
        elif "result" in line:
            result = dict(line["result"])
            self.left[number] = [
                point
                for point in self.left[number]
                if values(result, point) != values(point, point)
            ]
            self.ended(result)

    def fail(self, number: int, error: str) -> None:
        """The process of a batch has died: what it had not measured has failed."""
        self.free(number)
        for point in self.left[number]:
            self.ended(failed(point, error))

    def free(self, number: int) -> None:
        for placement in self.placements.pop(number, []):
            placement.free()


def watcher(batches: Sequence[Sequence[Point]], ended: Callable[[Found], None]) -> Any:
    """Ray Tune's view of the points."""
    from ray import tune

    keeper = Ended(batches, ended)

    class Watcher(tune.Callback):  # type: ignore[misc]
        def on_trial_result(self, *, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
            keeper.report(trial.config["number"], result)

        def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
            keeper.free(trial.config["number"])

        def on_trial_error(self, *, trial: Any, **_: Any) -> None:
            keeper.fail(trial.config["number"], reason(trial.error_file))

    return Watcher()
