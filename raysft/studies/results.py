"""results.json, the one file that all reports of a study are made from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysft.errors import UserError
from raysft.runs import rundir
from raysft.studies.study import Study


def header(study: str, run_dir: Path, title: str | None = None) -> dict[str, Any]:
    """What results begin with: study, title, who submitted them when, and the config."""
    spec = rundir.read_run(run_dir / rundir.RUN, "stamp", "config")
    named = {"study": study} if title is None else {"study": study, "title": title}
    return named | {"stamp": spec["stamp"], "config": spec["config"]}


def write(run_dir: Path, results: dict[str, Any]) -> None:
    """To be called after each point: what has ended is kept whatever comes."""
    rundir.write_json(run_dir / rundir.RESULTS, results)


def finished(run_dir: Path, statuses: Sequence[str] = ("done",)) -> list[dict[str, Any]]:
    """The cases that --resume need not run again: by default those that ended well. None of a new
    study."""
    if not (run_dir / rundir.RESULTS).exists():
        return []
    return [case for case in read(run_dir)[1]["cases"] if case["status"] in statuses]


def read(path: Path) -> tuple[Path, dict[str, Any]]:
    """A results.json, or that of a run directory. Raises UserError: it is not there, or is none."""
    file = path / rundir.RESULTS if path.is_dir() else path
    try:
        results: dict[str, Any] = json.loads(file.read_text())
        complete = {"study", "stamp", "config"} <= results.keys()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}: name a results.json, or a run") from None
    except (ValueError, AttributeError):
        complete = False
    if not complete:
        raise UserError(f"{file} holds no results of `raysft bench` or `raysft tune`")
    return file, results


def read_with_study(path: Path, studies: Mapping[str, Study]) -> tuple[Path, dict[str, Any], Study]:
    """The same, and the one of these studies, by name, that they are of.

    Raises UserError: this version knows none of that name, or they have not a single whole point.
    """
    file, results = read(path)
    name = results["study"]
    if name not in studies:
        raise UserError(
            f"{file}: results of an unknown study {name!r}: this raysft knows {', '.join(studies)}"
        )
    try:
        points = studies[name].points(results)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        points = []
    if not points:
        raise UserError(f"{file} holds no results of {name}, or is damaged")
    return file, results, studies[name]
