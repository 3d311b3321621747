"""The run directory: its files, and how a run ended."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysft.config.of_run import RUN as RUN
from raysft.errors import UserError

SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"  # answers to held-out records while it trained
LOG = "job.log"  # what libraries print, and tracebacks
MODEL = "model"
REFERENCE = "reference.npz"  # of DPO: log-probabilities by the model it starts from
PAIRS = "pairs.jsonl"  # of raysft pairs
RESULTS = "results.json"  # of a benchmark or a search
REPORT = "report.md"
BEST = "best.toml"  # of a search
CHECKPOINTS = "checkpoints"
STARTED = (
    METRICS,
    CHECKPOINTS,
    MODEL,
    RESULTS,
    PAIRS,
)  # a folder with one of these has been trained in

# Of a run that ended too early, to whoever starts it again or resumes it: the same words.
NOTHING_LEFT = "has nothing to go on from: remove it, or choose another --name"


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
        value: Any = json.loads(path.read_text())
    except OSError:
        raise UserError(f"there is no {path}: is {path.parent} a run directory?") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds a {type(value).__name__}, not an object")
    return value


def read_run(path: Path, *needed: str) -> dict[str, Any]:
    """A run.json. Raises UserError when it is missing, damaged or lacks one of these keys."""
    spec = read_json(path)
    kinds = {"verb": str, "config": dict, "stamp": dict}
    lacking = [key for key in needed if not (spec.get(key) and isinstance(spec[key], kinds[key]))]
    if lacking:
        raise UserError(
            f"{path} is damaged: it lacks {' and '.join(lacking)}. Put a copy of it back, or one "
            "that the same command writes under another --name with --dry-run"
        )
    return spec


def status(run_dir: Path) -> str:
    """done, failed, interrupted, running, or died: it neither runs nor wrote how it ended.

    planned: there is no summary. damaged: it says nothing.
    """
    if not (run_dir / SUMMARY).exists():
        return "planned"
    try:
        summary = read_json(run_dir / SUMMARY)
    except UserError:
        return "damaged"
    if not isinstance(summary.get("status"), str):
        return "damaged"
    if summary["status"] == "running" and not _alive(summary):
        return "died"
    return str(summary["status"])


def _alive(summary: Mapping[str, Any]) -> bool:
    if summary.get("host") != os.uname().nodename:
        return True  # another machine's process: this one cannot know
    try:
        os.kill(int(summary["pid"]), 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True
