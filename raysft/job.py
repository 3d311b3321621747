"""`python -m raysft.job RUN_DIR/run.json`: one run, from its run.json to its summary.json.

Standard output carries one JSON event a line and nothing else; whatever libraries print goes to
job.log in the run directory.
"""

import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from raysft import __version__
from raysft.config.load import validate
from raysft.config.schema import Config
from raysft.errors import INTERRUPTED, RunError, UserError, memory_users
from raysft.runs import events, rundir, undo
from raysft.runs.delivery import hanging
from raysft.runs.events import Emit, Event, to_wire
from raysft.runs.lock import held
from raysft.runs.loggers import loggers
from raysft.runs.phases import Phases
from raysft.runs.processes import adopt_orphans, end_children
from raysft.runs.trackers import Trackers, known
from raysft.runs.wandb_tracker import PROCESSES
from raysft.runtime.connect import shut_down_ray
from raysft.verbs.identities import ACCEPTED, known_before
from raysft.verbs.registry import VERBS
from raysft.verbs.resume import admit
from raysft.verbs.settle import CHOSEN, as_chosen, chosen_before, dated
from raysft.verbs.verb import Verb

LOGGED_PROGRESS_S = 10.0  # between two events of progress where standard output is a file


def main(run_json: str) -> int:
    path = Path(run_json)
    try:
        spec = rundir.read_run(path, "verb", "config", "stamp")
        config = validate(spec["config"], where=str(path))
    except UserError as error:  # before there is a folder, or anyone to tell in events
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    run_dir = Path(spec.get("run_dir", path.parent))
    # Where it was submitted from another machine, nobody else can put the folder back.
    before = undo.look(run_dir) if spec.get("resume") is False else None
    try:
        if spec.get("resume"):
            rundir.read_json(run_dir / rundir.RUN)  # before a folder is made
        with held(run_dir, tell, lost=end_now, inherits=True):
            config, warnings = arrive(run_dir, spec, config)
            verb = VERBS[spec["verb"]]
            chosen = [] if verb.is_chain else loggers(config, run_dir)
            kept = {} if verb.is_chain else known(config, run_dir)
            emit = Trackers(kept, run_dir, fan_out(chosen, take_stdout(run_dir / rundir.LOG)))
            code, summary = run(spec, config, run_dir, warnings, emit)
            if code != UserError.exit_code:
                write_report(verb, run_dir, emit)
            with suppress(BrokenPipeError):
                emit.end(summary)
    except UserError as error:
        if before:
            undo.remove_empty(before)
        return refuse(run_dir, spec, error)
    if before and code == UserError.exit_code:
        undo.put_back(before)
    with suppress(BrokenPipeError):  # whoever listened is gone
        emit(events.End(code, summary, results(run_dir)))
    return code


def run(
    spec: dict[str, Any], config: Config, run_dir: Path, warnings: list[str], emit: Emit
) -> tuple[int, dict[str, Any]]:
    """Exit code and summary, whatever comes. A resume that is refused leaves the summary before."""
    file = run_dir / rundir.SUMMARY
    before = file.read_bytes() if file.exists() else None
    verb = VERBS[spec["verb"]]
    summary: dict[str, Any] = {"status": "running", "verb": spec["verb"], "run_dir": str(run_dir)}
    scratch = own_scratch()
    summary |= {"pid": os.getpid(), "host": os.uname().nodename, "scratch": scratch}
    summary |= {"stamp": spec["stamp"], "config": spec["config"]}
    rundir.write_json(file, summary)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    adopt_orphans()
    started = time.monotonic()
    phases = Phases()

    def tell_and_time(event: Event) -> None:
        phases.see(event)
        emit(event)

    code = 0
    try:
        for warning in warnings:
            emit(events.Warning(warning))
        summary |= {"status": "done"} | verb.run(config, run_dir, tell_and_time)
        code = 0 if summary["status"] == "done" else 1
    except BaseException as error:
        code, status, message = explain(error)
        summary |= {"status": status, "error": message}
        if status == "interrupted":
            summary["resumable"] = verb.has_left(run_dir)
    with suppress(UserError):  # with what "auto" came to, and what was accepted
        written = rundir.read_json(run_dir / rundir.RUN)
        summary |= {key: written[key] for key in ("config", ACCEPTED) if key in written}
    phases.begin("ending")
    with suppress(OSError):  # its messages may meet a full disk
        shut_down_ray()
    end_children(but=PROCESSES)
    shutil.rmtree(scratch, ignore_errors=True)
    summary["wall_s"] = round(time.monotonic() - started, 2)
    summary["phases_s"] = phases.so_far()
    for key in ("pid", "host", "scratch"):
        del summary[key]
    with suppress(OSError):  # a full disk is already what the summary tells
        if before and code == UserError.exit_code:
            file.write_bytes(before)
        else:
            rundir.write_json(file, summary)
    return code, summary


def write_report(verb: Verb, run_dir: Path, emit: Emit) -> None:
    """Of a run that took a step, however it ended. A report that fails is a warning."""
    if verb.write_report is None or not (run_dir / rundir.METRICS).exists():
        return
    try:
        verb.write_report(run_dir)
    except Exception as error:
        with suppress(OSError):
            traceback.print_exc()
            emit(events.Warning(f"no {rundir.REPORT}: {type(error).__name__}: {error}"))


def arrive(run_dir: Path, spec: dict[str, Any], config: Config) -> tuple[Config, list[str]]:
    """What is run, and warnings. A job that has travelled writes its run.json here.

    Raises UserError.
    """
    if "run_dir" not in spec:
        return config, []
    if spec["resume"]:
        chosen = chosen_before(run_dir)
        config = dated(as_chosen(config, chosen), run_dir, resume=True)
        spec |= {"config": config.model_dump(mode="json")} | ({CHOSEN: chosen} if chosen else {})
    warnings = admit(VERBS[spec["verb"]], run_dir, config, resume=spec["resume"])
    spec |= known_before(run_dir) if spec["resume"] else {}
    submitted = spec["stamp"]["version"]
    if submitted != __version__:
        warnings.append(f"submitted by raysft {submitted}, and run by {__version__} of the cluster")
    rundir.write_run(run_dir, spec)
    return config, warnings


def tell(message: str) -> None:
    """What a job waits for before it has its folder."""
    print(json.dumps(to_wire(events.Warning(message))), flush=True)


def end_now(message: str) -> None:
    """Another process writes in the folder: nothing more is to be written there, nor waited for."""
    print(message, file=sys.stderr, flush=True)
    end_children()
    os._exit(1)


def refuse(run_dir: Path, spec: dict[str, Any], error: UserError) -> int:
    """The only word of a run that has no directory to leave others in."""
    summary = {"status": "failed", "verb": spec["verb"], "run_dir": str(run_dir)}
    end = events.End(error.exit_code, summary | {"error": str(error)}, results=None)
    print(json.dumps(to_wire(end)), flush=True)
    return error.exit_code


def results(run_dir: Path) -> dict[str, Any] | None:
    """Of a benchmark or a search: who watches may not see the storage."""
    file = run_dir / rundir.RESULTS
    return rundir.read_json(file) if file.exists() else None


def own_scratch() -> str:
    """A temporary folder for this job, its Ray and what they start; it goes when the job ends."""
    scratch = tempfile.mkdtemp(prefix="raysft-")
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    return scratch


def explain(error: BaseException) -> tuple[int, str, str]:
    """Exit code, status and message for whatever ended the run; the traceback goes to the log."""
    with suppress(OSError):
        traceback.print_exc()
    if isinstance(error, UserError | RunError):
        return error.exit_code, "failed", str(error)
    if isinstance(error, KeyboardInterrupt | BrokenPipeError):
        return INTERRUPTED, "interrupted", "interrupted"
    if isinstance(error, OSError):
        from raysft.runtime.failure_policy import disk_full, is_disk_full

        if is_disk_full(error):
            return 1, "failed", str(disk_full(error))
    if users := memory_users(error):
        from raysft.runtime.failure_policy import ADVICE

        beside = "out of memory: Ray has ended a process beside the workers"
        return 1, "failed", f"{beside}. {users}. End what else runs there. {ADVICE}"
    # Ray puts the remote traceback into the message; the cause is its last line.
    last_line = (str(error).strip().splitlines() or [""])[-1]
    return 1, "failed", f"{type(error).__name__}: {last_line}"


def take_stdout(log: Path) -> TextIO:
    """The real standard output, for events; from here on prints and C libraries go to the log."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    return stream


def fan_out(chosen: Sequence[Emit], stream: TextIO) -> Emit:
    """To these loggers, and to whoever reads standard output."""
    # Into a pipe somebody looks; what is kept in a file, as by a cluster, is to stay short.
    every_s = 0.0 if stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode) else LOGGED_PROGRESS_S
    last = 0.0

    def emit(event: Event) -> None:
        nonlocal last
        if isinstance(event, events.Progress):
            if time.monotonic() - last < every_s:
                return
            last = time.monotonic()
        for log in chosen:
            log(event)
        stream.write(json.dumps(to_wire(event)) + "\n")

    return emit


def leave(code: int) -> NoReturn:
    """At once where a service hangs, for which the hooks of its library would wait."""
    if hanging():
        end_children()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1]))
