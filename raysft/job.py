"""`python -m raysft.job RUN_DIR/run.json`: one run, from its run.json to its summary.json.

Standard output carries one JSON event a line and nothing else; whatever libraries print goes to
job.log in the run directory.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, TypeVar

from raysft import __version__, rundir
from raysft.cluster import EMBEDDED, local_resources, shut_down_ray, start_ray_beside
from raysft.config.resources import require_resources
from raysft.config.schema import Config
from raysft.errors import INTERRUPTED, RunError, UserError
from raysft.events import Emit, Event, jsonl_writer, tensorboard_writer, without
from raysft.processes import adopt_orphans, end_children
from raysft.resume import admit, resumable

if TYPE_CHECKING:
    from raysft.data.dataset import Prepared
    from raysft.data.template import Template


def main(run_json: str) -> int:
    path = Path(run_json)
    spec = rundir.read_json(path)
    config = Config.model_validate_json(json.dumps(spec["config"]))
    try:
        run_dir, warnings = arrive(path, spec, config)
    except UserError as error:
        return refuse(spec, error)
    events = take_stdout(run_dir / rundir.LOG)
    emit = fan_out(config, run_dir, events)
    summary: dict[str, Any] = {"status": "running", "verb": spec["verb"], "run_dir": str(run_dir)}
    scratch = own_scratch()
    summary |= {"pid": os.getpid(), "host": os.uname().nodename, "scratch": scratch}
    summary |= {"stamp": spec["stamp"], "config": spec["config"]}
    rundir.write_json(run_dir / rundir.SUMMARY, summary)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    adopt_orphans()
    started = time.monotonic()
    code = 0
    try:
        for warning in warnings:
            emit({"event": "warning", "message": warning})
        summary |= {"status": "done"} | VERBS[spec["verb"]](config, run_dir, emit)
        code = 0 if summary["status"] == "done" else 1
    except BaseException as error:
        code, status, message = explain(error)
        summary |= {"status": status, "error": message}
        if status == "interrupted":
            summary["resumable"] = resumable(spec["verb"], run_dir)
    with suppress(OSError):  # its messages may meet a full disk
        shut_down_ray()
    end_children()
    shutil.rmtree(scratch, ignore_errors=True)
    summary["wall_s"] = round(time.monotonic() - started, 2)
    summary = without(summary, "pid", "host", "scratch")
    with suppress(OSError):  # a full disk is already what the summary tells
        rundir.write_json(run_dir / rundir.SUMMARY, summary)
    with suppress(BrokenPipeError):  # whoever listened is gone
        emit({"event": "end", "exit_code": code, "summary": summary, "results": results(run_dir)})
    return code


def arrive(path: Path, spec: dict[str, Any], config: Config) -> tuple[Path, list[str]]:
    """The run directory, and warnings. One that has travelled makes it here. Raises UserError."""
    if "run_dir" not in spec:
        return path.parent, []
    run_dir = Path(spec["run_dir"])
    warnings = admit(spec["verb"], run_dir, config, resume=spec["resume"])
    submitted = spec["stamp"]["version"]
    if submitted != __version__:
        warnings.append(f"submitted by raysft {submitted}, and run by {__version__} of the cluster")
    rundir.write_run(run_dir, spec)
    return run_dir, warnings


def refuse(spec: dict[str, Any], error: UserError) -> int:
    """The only word of a run that has no directory to leave others in."""
    summary = {"status": "failed", "verb": spec["verb"], "run_dir": spec["run_dir"]}
    end = {"event": "end", "exit_code": error.exit_code, "summary": summary, "results": None}
    print(json.dumps(end | {"summary": summary | {"error": str(error)}}), flush=True)
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
        from raysft.failures import disk_full, is_disk_full

        if is_disk_full(error):
            return 1, "failed", str(disk_full(error))
    # Ray puts the remote traceback into the message; the cause is its last line.
    last_line = (str(error).strip().splitlines() or [""])[-1]
    return 1, "failed", f"{type(error).__name__}: {last_line}"


def take_stdout(log: Path) -> TextIO:
    """The real standard output, for events; from here on prints and C libraries go to the log."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    return events


def fan_out(config: Config, run_dir: Path, events: TextIO) -> Emit:
    writers = [jsonl_writer(run_dir / rundir.METRICS)]
    if config.log.tensorboard:
        writers.append(tensorboard_writer(run_dir / "tensorboard"))

    def emit(event: Event) -> None:
        for write in writers:
            write(event)
        events.write(json.dumps(event) + "\n")

    return emit


T = TypeVar("T")


class Inputs(NamedTuple):
    template: "Template"
    hf_config: Any
    prepared: "Prepared"
    facts: dict[str, Any]  # of the audit


def beside_ray(config: Config, emit: Emit, read: Callable[[Callable[[], None]], T]) -> T:
    """Read the inputs while Ray starts. `read` gets a function that waits for Ray.

    A mistake is told at once: ending the half-started Ray takes seconds.
    """

    def read_or_tell(ray_is_there: Callable[[], None]) -> T:
        try:
            return read(ray_is_there)
        except UserError as error:
            emit({"event": "mistake", "message": str(error)})
            raise

    if EMBEDDED:
        require_resources(config, [local_resources(config)])
    emit({"event": "status", "message": "starting Ray"})
    return start_ray_beside(config, read_or_tell)


def read_model(config: Config, emit: Emit) -> tuple["Template", Any]:
    """Tokenizer and model config. Raises UserError."""
    from raysft.train.model import load_model_config, load_template

    emit({"event": "status", "message": f"loading tokenizer {config.model.tokenizer_path}"})
    template = load_template(config)
    return template, load_model_config(config, template)


def read_inputs(config: Config, emit: Emit, ray_is_there: Callable[[], None]) -> Inputs:
    """Tokenizer, model config and data. Raises UserError."""
    from raysft.data.audit import audit
    from raysft.data.dataset import prepare

    template, hf_config = read_model(config, emit)
    emit({"event": "status", "message": "reading data"})
    prepared = prepare(config, template, ray_is_there)
    facts = audit(config, template, prepared)
    emit({"event": "data", **facts})
    from raysft import driver, samples  # noqa: F401 (imported here while Ray starts)

    return Inputs(template, hf_config, prepared, facts)


def train(config: Config, run_dir: Path, emit: Emit) -> dict[str, Any]:
    template, hf_config, prepared, facts = beside_ray(
        config, emit, lambda ray_is_there: read_inputs(config, emit, ray_is_there)
    )
    from raysft import driver
    from raysft.samples import finish_model

    emit({"event": "status", "message": "starting workers"})
    observed: dict[str, Any] = {}
    last: dict[str, Any] = {}

    def keep(event: Event) -> None:
        if event["event"] == "workers":
            observed.update(without(event, "event"))
        if event["event"] == "metrics" and "loss" in event:
            last.update(event)
        emit(event)

    result = driver.fit(
        config, prepared.train, prepared.heldout, hf_config, template.tokenizer, run_dir, keep
    )
    shut_down_ray()
    emit({"event": "status", "message": "writing answers to held-out records"})
    answers = finish_model(config, run_dir / rundir.MODEL, prepared.heldout, emit)
    return {
        "model_dir": str(run_dir / rundir.MODEL),
        "num_restarts": result.num_restarts,
        "restarts": result.restarts,
        "num_records": facts["num_records"],
        "num_eval_records": facts["num_eval_records"],
        "num_dropped": facts["num_dropped"],
        "steps": result.totals["step"],
        **without(result.totals, "step"),
        "peak_memory_gib": last.get("peak_memory_gib"),
        **answers,
        "data": facts,
        "workers": observed,
    }


def bench_seq_len(config: Config, run_dir: Path, emit: Emit) -> dict[str, Any]:
    from raysft.bench.seq_len import Study, longest, run

    def read(ray_is_there: Callable[[], None]) -> Study:
        if config.bench.synthetic:
            template, hf_config = read_model(longest(config), emit)
            return Study(config, hf_config, template.tokenizer, None, run_dir)
        inputs = read_inputs(longest(config), emit, ray_is_there)
        records = inputs.prepared.train
        return Study(config, inputs.hf_config, inputs.template.tokenizer, records, run_dir)

    return run(beside_ray(config, emit, read), emit)


def tune(config: Config, run_dir: Path, emit: Emit) -> dict[str, Any]:
    from raysft.tune.trials import read_before

    before = read_before(run_dir)
    inputs = beside_ray(config, emit, lambda ray_is_there: read_inputs(config, emit, ray_is_there))
    from raysft import driver
    from raysft.data.dataset import epoch_length
    from raysft.tune import search
    from raysft.tune.trial import Study, replay

    data = inputs.prepared
    if not len(data.heldout):
        raise UserError(
            "trials are compared by their held-out loss, and no record is held out of so few: "
            "raise data.eval_fraction, or set data.eval_path"
        )
    study = Study(
        config=config,
        train=data.train,
        heldout=data.heldout,
        template=inputs.template,
        run_dir=run_dir.resolve(),
        stamp=rundir.read_json(run_dir / rundir.RUN)["stamp"],
        replays={trial.number: replay(trial) for trial in before if trial.finished},
    )
    emit({"event": "status", "message": "searching"})
    total_steps = driver.total_steps(config, epoch_length(data.train))
    summary = search.run(study, before, total_steps, emit)
    files = {"results": rundir.RESULTS, "report": rundir.REPORT, "best_config": rundir.BEST}
    paths = {name: str(run_dir / file) for name, file in files.items()}
    return summary | paths | {"data": inputs.facts}


def doctor(config: Config, run_dir: Path, emit: Emit) -> dict[str, Any]:  # noqa: ARG001
    from raysft.doctor.examine import examine

    return examine(config, emit, prove=False)


def prove(config: Config, run_dir: Path, emit: Emit) -> dict[str, Any]:  # noqa: ARG001
    from raysft.doctor.examine import examine

    return examine(config, emit, prove=True)


VERBS: dict[str, Callable[[Config, Path, Emit], dict[str, Any]]] = {
    "train": train,
    "tune": tune,
    "bench seq-len": bench_seq_len,
    "doctor": doctor,
    "doctor --prove": prove,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
