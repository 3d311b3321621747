"""The run directory: its files, and how a run ended."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from raysft.errors import UserError

RUN = "run.json"
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
LOG = "job.log"  # what libraries print, and tracebacks
MODEL = "model"
RESULTS = "results.json"  # of a benchmark or a search
REPORT = "report.md"
BEST = "best.toml"  # of a search
CHECKPOINTS = "checkpoints"
REGISTER = "checkpoint_manager_snapshot.json"  # Ray Train's, written after each upload
WRITING = ".writing-"  # a checkpoint's files until they are checked; registered it is complete
STARTED = (METRICS, CHECKPOINTS, MODEL, RESULTS)  # a folder with one of these has been trained in


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Moved into place, so that a reader never finds half a file. Raises OSError."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(value, indent=2) + "\n")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_run(run_dir: Path, spec: Mapping[str, Any]) -> None:
    """Make the folder and its run.json. Raises UserError."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / RUN, spec)
    except OSError as error:
        raise UserError(f"run.storage: {run_dir} cannot be written: {error.strerror}") from None


def require_shared(run_dir: Path) -> None:
    """Raises UserError where this node does not see the folder that the job has made."""
    if not run_dir.is_dir():
        raise UserError(
            f"run.storage: there is no {run_dir} on {os.uname().nodename}: it must be on a file "
            "system that all nodes share; `raysft doctor --address` checks that"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError when the file is missing or damaged."""
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except OSError:
        raise UserError(f"there is no {path}: is {path.parent} a run directory?") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return value


def checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoint folders, oldest first: those that Ray Train has registered."""
    return list(checkpoints_by_step(run_dir).values())


def checkpoints_by_step(run_dir: Path) -> dict[int, Path]:
    """The same, under the optimizer step they were taken after."""
    folder = run_dir / CHECKPOINTS
    try:
        registered = read_json(folder / REGISTER)["checkpoint_results"]
        named = {int(r["metrics"]["step"]): str(r["checkpoint_dir_name"]) for r in registered}
    except (UserError, KeyError, TypeError, ValueError):
        return {}  # none yet, or it is being written: register.mend() looks for damage
    return {step: folder / name for step, name in named.items()}


def sweep(run_dir: Path) -> None:
    """Remove what a killed run left of checkpoints that were never complete."""
    complete = {path.name for path in checkpoints(run_dir)}
    unfinished = list((run_dir / CHECKPOINTS).glob(WRITING + "*"))
    if complete:  # else nobody knows: the register may be damaged
        found = (run_dir / CHECKPOINTS).glob("checkpoint_*")
        unfinished += [path for path in found if path.is_dir() and path.name not in complete]
    for path in unfinished:
        shutil.rmtree(path, ignore_errors=True)


def remove_scratch(run_dir: Path) -> None:
    """The temporary folder of a job that could not remove it, and its unfinished checkpoints."""
    with suppress(UserError):
        summary = read_json(run_dir / SUMMARY)
        if "scratch" in summary and status(run_dir) == "died":
            shutil.rmtree(summary["scratch"], ignore_errors=True)
            sweep(run_dir)


def status(run_dir: Path) -> str:
    """done, failed, interrupted, running, or died: it neither runs nor wrote how it ended."""
    try:
        summary = read_json(run_dir / SUMMARY)
    except UserError:
        return "planned"
    if summary["status"] == "running" and not _alive(summary):
        return "died"
    return str(summary["status"])


def _alive(summary: Mapping[str, Any]) -> bool:
    if summary.get("host") != os.uname().nodename:
        return True  # another machine's process: this one cannot know
    try:
        os.kill(int(summary["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
