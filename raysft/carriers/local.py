"""Carriers: how a run.json gets to a machine, and its events back."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysft.errors import INTERRUPTED
from raysft.runs import rundir
from raysft.runs.processes import adopt_orphans, end_children


def entrypoint(run_json: Path) -> str:
    """The command of a run, the same for every carrier."""
    return f"python -m raysft.job {shlex.quote(str(run_json))}"


def run_local(run_dir: Path, on_event: Callable[[dict[str, Any]], None]) -> int:
    """Run the job in a process of its own and hand on its events. Returns its exit code.

    Ctrl-C and SIGTERM are passed on: the first asks the job to end, the second to end at once; the
    third kills it.
    """
    adopt_orphans()
    with (run_dir / rundir.LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *shlex.split(entrypoint(run_dir / rundir.RUN))[1:]],
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on
        )
    interrupts = 0

    def interrupt(_signum: int, _frame: object) -> None:
        nonlocal interrupts
        interrupts += 1
        process.send_signal(signal.SIGINT if interrupts <= 2 else signal.SIGKILL)

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert process.stdout is not None
        for line in process.stdout:
            on_event(json.loads(line))
        code = process.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        end_children()  # of a job that was killed
        rundir.remove_scratch(run_dir)
    return INTERRUPTED if interrupts else code
