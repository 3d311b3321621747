"""From a validated config to a run: its directory, the job, and its last words."""

import json
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from raysft.carriers import local
from raysft.cli import console
from raysft.config.schema import Config
from raysft.errors import INTERRUPTED, RunError, UserError
from raysft.runs import provenance, rundir
from raysft.verbs import plan
from raysft.verbs.resume import admit


def launch(
    verb: str,
    source: str,
    config: Config,
    name: str | None,
    *,
    resume: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
    address: str | None = None,
    ship_code: bool = False,
) -> None:
    """Run the job, here or on the cluster at `address`, and show its events.

    source: the preset or file that the config came from. Ends in typer.Exit with the exit code of
    the run. Raises UserError and RunError.
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
    rows = plan.equations(config, verb)
    run_dir = Path(config.run.storage) / str(config.run.name)
    spec: dict[str, Any] = {
        "verb": verb,
        "config": config.model_dump(mode="json"),
        "stamp": provenance.submission(),
    }
    if address is not None:
        from raysft.cli.attach import run_there

        spec |= {"run_dir": str(run_dir), "resume": resume}
        heading = f"[bold]raysft {verb}[/] {source} to {run_dir} on {address}"
        run_there(
            spec, config, heading, rows, address,
            ship_code=ship_code, dry_run=dry_run, as_json=as_json,
        )  # fmt: skip
        return
    if ship_code:
        raise UserError("--ship-code sends this checkout to a cluster: which one, --address?")
    for warning in admit(verb, run_dir, config, resume=resume):
        console.warning(warning)
    rundir.write_run(run_dir, spec)
    console.stderr.print(f"[bold]raysft {verb}[/] {source} to {run_dir}")
    for row in rows:
        console.fact(*row)
    if dry_run:
        print(local.entrypoint(run_dir / rundir.RUN))
        return
    run_here(run_dir, as_json=as_json)


def run_here(run_dir: Path, *, as_json: bool) -> None:
    """Run the run.json of this folder and show its events; ends in typer.Exit. Raises RunError."""
    with console.Renderer() as render:
        code = local.run_local(run_dir, render)
    log = run_dir / rundir.LOG
    if render.end is None:
        if code == INTERRUPTED:
            console.error(f"killed before it could end; see {log}")
            raise typer.Exit(code)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise RunError(f"the job ended without a word (exit code {code}); {log} ends:\n{tail}")
    finish(render, render.end, as_json=as_json)


def finish(render: console.Renderer, end: console.Event, *, as_json: bool) -> None:
    """The last words of a run, and its exit code."""
    summary, code = dict(end["summary"]), end["exit_code"]
    if summary["status"] == "interrupted":
        say_how_to_resume(summary, console.error)
        code = INTERRUPTED
    elif summary["status"] == "failed":
        if summary["error"] != render.told:
            console.error(summary["error"])
        if "stamp" in summary and not summary["verb"].startswith("doctor"):  # else it has no log
            log = Path(summary["run_dir"]) / rundir.LOG
            console.stderr.print(f"[dim]details: {log}[/]", soft_wrap=True)
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


def examined(summary: dict[str, Any]) -> str:
    warned = sum(check["status"] == "warn" for check in summary["checks"])
    warnings = f", {warned} of them with a warning" if warned else ""
    return f"ready: {len(summary['checks'])} checks passed{warnings}"


LAST_WORDS = {
    "train": trained,
    "tune": searched,
    "bench seq-len": benched,
    "doctor": examined,
    "doctor --prove": examined,
}


def say_how_to_resume(summary: dict[str, Any], say: Callable[[str], None]) -> None:
    verb, run_dir = summary["verb"], Path(summary["run_dir"])
    if verb == "bench seq-len":
        kept = f"the cases that ended are in {run_dir / rundir.RESULTS}"
        say(f"interrupted; {kept if summary['resumable'] else 'no case ended'}")
        return
    before, where = {
        "train": ("the first checkpoint", "from the newest checkpoint"),
        "tune": ("the first trial", "with the trials that are left"),
    }[verb]
    if not summary["resumable"]:
        say(f"interrupted before {before}; nothing to resume in {run_dir}")
        return
    words = shlex.split(summary["stamp"]["command"])
    words += [] if "--name" in words else ["--name", run_dir.name]
    words += [] if "--resume" in words else ["--resume"]
    say(f"interrupted; go on {where} with\n  {shlex.join(words)}")
