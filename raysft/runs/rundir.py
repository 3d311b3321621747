"""The run directory: its files, and how a run ended."""

import json
import os
from collections.abc import Mapping
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
