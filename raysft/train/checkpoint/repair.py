"""Mends Ray Train's register of checkpoints, without which none of them is found.

Ray writes it in place: a full disk or a kill at that moment leaves half of it. And it refuses one
that names a folder which somebody has removed.
"""

import json
from pathlib import Path
from typing import Any

from raysft.errors import UserError
from raysft.runs import rundir


def mend(run_dir: Path) -> str | None:
    """Write it again from the checkpoints that are there; what was wrong, or None if nothing was.

    Only whole checkpoints are listed: their files have the sizes and checksums that they had.
    """
    folder = run_dir / rundir.CHECKPOINTS
    register = folder / rundir.REGISTER
    wrong = fault(folder, register)
    if wrong is None:
        return None
    from raysft.train.checkpoint.integrity import damage

    found = [path for path in folder.glob("checkpoint_*") if path.is_dir() and damage(path) is None]
    steps = sorted((step_of(path), path.name) for path in found if step_of(path))
    if not steps:
        return None  # nothing is lost that could be found again
    rundir.write_json(register, snapshot(steps))
    return f"{register} {wrong}: written again from the {len(steps)} whole checkpoints beside it"


def fault(folder: Path, register: Path) -> str | None:
    if not register.exists():
        return "was missing" if any(folder.glob("checkpoint_*")) else None
    try:
        names = [str(r["checkpoint_dir_name"]) for r in rundir.read_json(register)[RESULTS]]
    except (UserError, KeyError, TypeError):
        return "was damaged"
    gone = [name for name in names if not (folder / name).is_dir()]
    return f"named {gone[0]}, which is gone" if gone else None


def step_of(checkpoint: Path) -> int:
    """The optimizer step it was taken after; 0 where it does not say."""
    manifest = checkpoint / "manifest_0.json"
    return int(json.loads(manifest.read_text()).get("step", 0)) if manifest.exists() else 0


RESULTS = "checkpoint_results"


def snapshot(steps: list[tuple[int, str]]) -> dict[str, Any]:
    """The state of Ray Train's checkpoint manager, oldest first."""
    import ray

    results = [
        {"version": 0, "checkpoint_dir_name": name, "metrics": {"step": step, "eval_loss": None}}
        for step, name in steps
    ]
    return {
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
