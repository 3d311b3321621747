"""Ray Train's snapshot of its checkpoints, whose format is Ray's own and stands here alone.

A checkpoint is complete when it is named there. Ray writes the file in place, after each upload.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raysft.errors import UserError
from raysft.runs import rundir

FILE = "checkpoint_manager_snapshot.json"
RESULTS = "checkpoint_results"


def checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoint folders, oldest first."""
    return list(checkpoints_by_step(run_dir).values())


def checkpoints_by_step(run_dir: Path) -> dict[int, Path]:
    """The same, under the optimizer step they were taken after.

    None where there is no snapshot yet, or it is being written; checkpoint.repair looks for damage.
    """
    folder = run_dir / rundir.CHECKPOINTS
    try:
        results = rundir.read_json(folder / FILE)[RESULTS]
        named = {int(r["metrics"]["step"]): str(r["checkpoint_dir_name"]) for r in results}
    except (UserError, KeyError, TypeError, ValueError):
        return {}
    return {step: folder / name for step, name in named.items()}


def names(folder: Path) -> list[str]:
    """The checkpoints that the snapshot in this folder names. Raises ValueError: it is damaged."""
    try:
        return [str(r["checkpoint_dir_name"]) for r in rundir.read_json(folder / FILE)[RESULTS]]
    except (UserError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from None


def write(folder: Path, steps: Iterable[tuple[int, str]]) -> None:
    """A snapshot of these checkpoints, oldest first: the step and the name of each."""
    import ray

    results: list[dict[str, Any]] = [
        {"version": 0, "checkpoint_dir_name": name, "metrics": {"step": step, "eval_loss": None}}
        for step, name in steps
    ]
    state = {
        "ray_version": ray.__version__,
        RESULTS: results,
        "checkpoint_report_indices": list(range(1, len(results) + 1)),
        "latest_checkpoint_result": results[-1],
        "current_report_index": len(results) + 1,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    rundir.write_json(folder / FILE, state)
