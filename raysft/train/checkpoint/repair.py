"""Puts the folder of checkpoints right after a crash: Ray's snapshot, and what never was complete.

Light imports only: this runs where a command is typed.
"""

import json
import shutil
from pathlib import Path

from raysft.errors import UserError
from raysft.runs import rundir, snapshot
from raysft.train.checkpoint import layout


def repair(run_dir: Path) -> str | None:
    """Write Ray's snapshot again from the checkpoints; what was wrong, or None if nothing was.

    A full disk or a kill leaves half of it, and Ray refuses one that names a folder which somebody
    has removed. Only whole checkpoints are named: their files have the sizes and checksums that
    they had.
    """
    folder = run_dir / rundir.CHECKPOINTS
    wrong = fault(folder)
    if wrong is None:
        return None
    from raysft.train.checkpoint.integrity import damage

    found = [path for path in folder.glob(layout.FOLDERS) if path.is_dir() and not damage(path)]
    steps = sorted((step_of(path), path.name) for path in found if step_of(path))
    if not steps:
        return None  # nothing is lost that could be found again
    snapshot.write(folder, steps)
    file = folder / snapshot.FILE
    return f"{file} {wrong}: written again from the {len(steps)} whole checkpoints beside it"


def require_checkpoint(run_dir: Path) -> None:
    """Raises UserError where there is none to go on from, after `repair`."""
    folder = run_dir / rundir.CHECKPOINTS
    if wrong := fault(folder):
        raise UserError(
            f"{run_dir} has no checkpoint to resume from: {folder / snapshot.FILE} {wrong}, and no "
            "other is whole. Put its folder back, or start the run under another --name"
        )
    if not snapshot.checkpoints(run_dir):
        raise UserError(f"{run_dir} has no checkpoint to resume from, so it {rundir.NOTHING_LEFT}")


def fault(folder: Path) -> str | None:
    if not (folder / snapshot.FILE).exists():
        return "was missing" if any(folder.glob(layout.FOLDERS)) else None
    try:
        names = snapshot.names(folder)
    except ValueError:
        return "was damaged"
    gone = [name for name in names if not (folder / name).is_dir()]
    return f"named {gone[0]}, which is gone" if gone else None


def step_of(checkpoint: Path) -> int:
    """The optimizer step it was taken after; 0 where it does not say."""
    manifest = layout.manifest(checkpoint, 0)
    return int(json.loads(manifest.read_text()).get("step", 0)) if manifest.exists() else 0


def sweep(run_dir: Path) -> None:
    """Remove what a killed run left of checkpoints that were never complete."""
    folder = run_dir / rundir.CHECKPOINTS
    complete = {path.name for path in snapshot.checkpoints(run_dir)}
    unfinished = list(folder.glob(layout.WRITING + "*"))
    if complete:  # else nobody knows: the snapshot may be damaged
        found = folder.glob(layout.FOLDERS)
        unfinished += [path for path in found if path.is_dir() and path.name not in complete]
    for path in unfinished:
        shutil.rmtree(path, ignore_errors=True)
