"""From a validated config to a run: its directory, the job, and its last words."""

import json
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from raysft import console, plan, rundir, stamp, submit
from raysft.config.schema import Config
from raysft.errors import INTERRUPTED, RunError, UserError
from raysft.resume import CHECK_RESUME


def launch(
    verb: str,
    source: str,
    config: Config,
    name: str | None,
    *,
    resume: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Write run.json, run the job and show its events; ends in typer.Exit with its exit code.

    source: the preset or file that the config came from. Raises UserError and RunError.
    """
    if name is None and config.run.name is None:
        if resume:
            raise UserError(f"--resume needs --name: which run in {config.run.storage}/?")
        name = f"{Path(source).stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if name is not None:
        run_section = config.run.model_copy(update={"name": name})
        config = config.model_copy(update={"run": run_section})
    if verb != "train" and config.scaling.elastic:
        raise UserError(
            f"raysft {verb} compares runs, which must have the same number of workers: set "
            "scaling.workers to one number"
        )
    run_dir = Path(config.run.storage) / str(config.run.name)
    if resume:
        CHECK_RESUME[verb](run_dir, config)
    elif any((run_dir / started).exists() for started in rundir.STARTED):
        raise UserError(
            f"{run_dir} holds a run already: choose another --name, "
            + ("go on with it by --resume, " if verb in CHECK_RESUME else "")
            + "or remove it"
        )
    rows = plan.equations(config, verb)
    spec = {
        "verb": verb,
        "config": config.model_dump(mode="json"),
        "stamp": stamp.submission(),
    }
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        rundir.write_json(run_dir / rundir.RUN, spec)
    except OSError as error:
        raise UserError(f"run.storage: {run_dir} cannot be written: {error.strerror}") from None
    console.stderr.print(f"[bold]raysft {verb}[/] {source} to {run_dir}")
    for row in rows:
        console.fact(*row)
    if dry_run:
        print(submit.entrypoint(run_dir / rundir.RUN))
        return
    with console.Renderer() as render:
        code = submit.run_local(run_dir, render)
    finish(run_dir, render, code, as_json=as_json)


def finish(run_dir: Path, render: console.Renderer, code: int, *, as_json: bool) -> None:
    """The last words of a run, and its exit code."""
    end = render.end
    if end is None:
        log = run_dir / rundir.LOG
        if code == INTERRUPTED:
            console.error(f"killed before it could end; see {log}")
            raise typer.Exit(code)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise RunError(f"the job ended without a word (exit code {code}); {log} ends:\n{tail}")
    summary: dict[str, Any] = dict(end["summary"])
    if summary["status"] == "interrupted":
        say_how_to_resume(run_dir, summary)
        code = INTERRUPTED
    elif summary["status"] == "failed":
        if summary["error"] != render.told:
            console.error(summary["error"])
        console.stderr.print(f"[dim]details: {run_dir / rundir.LOG}[/]", soft_wrap=True)
    if as_json:
        print(json.dumps(summary, separators=(",", ":")))
    elif summary["status"] == "done":
        print(LAST_WORDS[summary["verb"]](summary))
    raise typer.Exit(code)


def trained(summary: dict[str, Any]) -> str:
    first, last = summary["eval_loss_first"], summary["eval_loss_last"]
    heldout = "" if last is None else f", held-out loss {first:.4f} to {last:.4f}"
    return f"done: {summary['steps']} steps{heldout}; model in {summary['model_dir']}"


def benched(summary: dict[str, Any]) -> str:
    return f"{summary['verdict']}\ndone: {summary['report']}"


def searched(summary: dict[str, Any]) -> str:
    return (
        f"done: trial {summary['best']}, held-out loss {summary['eval_loss']:.4f}; "
        f"train with it: raysft train {summary['best_config']}"
    )


LAST_WORDS = {"train": trained, "tune": searched, "bench seq-len": benched}


def say_how_to_resume(run_dir: Path, summary: dict[str, Any]) -> None:
    results = run_dir / rundir.RESULTS
    if summary["verb"] == "bench seq-len":
        kept = f"the cases that ended are in {results}" if results.exists() else "no case ended"
        console.error(f"interrupted; {kept}")
        return
    if summary["verb"] == "train" and not rundir.checkpoints(run_dir):
        console.error(f"interrupted before the first checkpoint; nothing to resume in {run_dir}")
        return
    if summary["verb"] == "tune" and not results.exists():
        console.error(f"interrupted before the first trial; nothing to resume in {run_dir}")
        return
    where = {"train": "from the newest checkpoint", "tune": "with the trials that are left"}
    words = shlex.split(summary["stamp"]["command"])
    words += [] if "--name" in words else ["--name", run_dir.name]
    words += [] if "--resume" in words else ["--resume"]
    go_on = where[summary["verb"]]
    console.error(f"interrupted; go on {go_on} with\n  {shlex.join(words)}")
