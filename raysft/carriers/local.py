"""This machine as a carrier: the job is a process of its own, and its events come by a pipe."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from raysft.carriers.entrypoint import entrypoint
from raysft.errors import INTERRUPTED, UserError
from raysft.runs import rundir
from raysft.runs.events import Emit, from_wire
from raysft.runs.lock import held, ignore
from raysft.runs.processes import adopt_orphans, children, end_children
from raysft.train.checkpoint.repair import sweep


def remove_scratch(run_dir: Path) -> None:
    """The temporary folder of a job that could not remove it, and its unfinished checkpoints.

    Nothing where another process has taken the run since.
    """
    if rundir.status(run_dir) != "died":
        return
    with suppress(UserError), held(run_dir, ignore):
        summary = rundir.read_json(run_dir / rundir.SUMMARY)
        if isinstance(summary.get("scratch"), str) and rundir.status(run_dir) == "died":
            shutil.rmtree(summary["scratch"], ignore_errors=True)
            sweep(run_dir)


def run_local(run_dir: Path, on_event: Emit) -> int:
    """Run the job in a process of its own and hand on its events. Returns its exit code.

    Ctrl-C and SIGTERM are passed on: the first asks the job to end, the second to end at once; the
    third kills it.
    """
    others = children()  # of a notebook, say
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
            if event := from_wire(json.loads(line)):
                on_event(event)
        code = process.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        end_children(spared=others)  # of a job that was killed
        remove_scratch(run_dir)
    return INTERRUPTED if interrupts else code
