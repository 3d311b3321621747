"""A run's folder as it was before a submission that was a mistake, and so has run nothing."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raysft.runs import rundir
from raysft.runs.lock import FILE as LOCK

# What is written of a run before it has read its inputs.
FIRST_FILES = {rundir.RUN, rundir.SUMMARY, rundir.LOG}


@dataclass(frozen=True)
class Before:
    """The folder before a submission."""

    run_dir: Path
    names: frozenset[str]
    contents: dict[str, bytes]  # of run.json and summary.json
    log_bytes: int
    missing: tuple[Path, ...]  # it and the folders above it that there were not, the deepest first


def look(run_dir: Path) -> Before:
    files = {path.name: path for path in run_dir.iterdir()} if run_dir.is_dir() else {}
    kept = [name for name in (rundir.RUN, rundir.SUMMARY) if name in files]
    log = files.get(rundir.LOG)
    return Before(
        run_dir,
        frozenset(files),
        {name: files[name].read_bytes() for name in kept},
        log.stat().st_size if log else 0,
        tuple(path for path in (run_dir, *run_dir.parents) if not os.path.exists(path)),
    )


def put_back(before: Before) -> None:
    """Unless more was written than the first files, or another process has taken the folder."""
    run_dir = before.run_dir
    with suppress(OSError):  # it is only tidying up
        if run_dir.is_dir():
            new = {path.name for path in run_dir.iterdir()} - before.names
            if not new <= FIRST_FILES or (run_dir / LOCK).exists():
                return
            for name in new:
                (run_dir / name).unlink()
            for name, content in before.contents.items():
                (run_dir / name).write_bytes(content)
            if rundir.LOG in before.names:
                os.truncate(run_dir / rundir.LOG, before.log_bytes)
    remove_empty(before)


def remove_empty(before: Before) -> None:
    """The folders that were made: of a submission that was refused, and has written no file."""
    with suppress(OSError):  # one holds something
        for folder in before.missing:
            if folder.exists():
                folder.rmdir()
