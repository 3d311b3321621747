"""How a run ends for whoever typed its command: tables, a sentence, an exit code."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from raysft.cli import terminal
from raysft.errors import INTERRUPTED, RunError, UserError
from raysft.runs import rundir, snapshot
from raysft.runs.events import End
from raysft.verbs.registry import VERBS

LONGEST = 60  # characters of a question that is shown as one to ask
EXAMPLE = "Say hello."


class Ended(typer.Exit):
    """How a run ended, for whoever called a command and goes on."""

    def __init__(self, code: int, summary: Mapping[str, Any]) -> None:
        super().__init__(code)
        self.summary = summary


def finish(end: End, *, told: str, as_json: bool) -> None:
    """told: the mistake that is on the screen already. Raises Ended with the exit code.

    Raises RunError where another version ran a verb that this one does not know.
    """
    summary, code = dict(end.summary), end.exit_code
    if summary.get("verb") not in VERBS:
        raise RunError(f"it ended as this raysft cannot tell, which another one ran: {summary}")
    verb = VERBS[summary["verb"]]
    for table in verb.tables(summary, end.results):
        terminal.stderr.print(table)
    if summary["status"] == "interrupted":
        terminal.error(verb.interrupted(summary))
        code = INTERRUPTED
    elif summary["status"] == "failed":
        if summary["error"] != told:
            terminal.error(summary["error"])
        log = Path(summary["run_dir"]) / rundir.LOG
        # Without a stamp it never had a folder, and of a mistake nothing may be left.
        if "stamp" in summary and verb.is_a_run and code != UserError.exit_code:
            terminal.stderr.print(f"[dim]details: {log}[/]", soft_wrap=True)
    if summary["status"] == "done" and not as_json:
        terminal.say(verb.done(summary))
    if summary["status"] == "done" and verb.is_a_run:
        for line in next_steps(Path(summary["run_dir"]), summary):
            terminal.stderr.print(line, markup=False, soft_wrap=True)
    if as_json:  # the last line, also where both streams go to one file
        print(json.dumps(summary, separators=(",", ":")))
    raise Ended(code, summary)


def next_steps(run_dir: Path, summary: Mapping[str, Any]) -> list[str]:
    """What can be done with a run that lies here: commands to be copied, as lines.

    Nothing of one that lies where only a cluster sees it.
    """
    steps = []
    trained = Path(summary.get("model_dir", run_dir / rundir.MODEL)).parent  # of a chain its last
    run = shlex.quote(str(trained))
    if (trained / rundir.MODEL).is_dir():
        if summary.get("verb") != "reward":  # which scores answers and writes none
            steps.append(f"raysft generate {run} {quoted(question(summary))}")
        if snapshot.checkpoints(trained):
            to = shlex.quote(f"{run_dir.resolve().name}-model")
            steps.append(f"raysft export {run} --to {to}")
    there = (run_dir / rundir.REPORT).exists()
    if not there and (run_dir / rundir.METRICS).exists():
        steps.append(f"raysft report {run}")
    lines = ["next:", *(f"  {step}" for step in steps)] if steps else []
    if there:
        lines.append(f"to show others: {run_dir / rundir.REPORT}")
    return lines


def question(summary: Mapping[str, Any]) -> str:
    """One that the run was asked itself, if it is short."""
    asked = [one["instruction"] for one in summary.get("samples", ())]
    return next((text for text in asked if len(text) <= LONGEST), EXAMPLE)


def quoted(text: str) -> str:
    """For a shell, on one line."""
    if "\n" not in text:
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"$'{escaped}'"
