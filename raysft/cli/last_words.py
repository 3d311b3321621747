"""How a run ends for whoever typed its command: tables, a sentence, an exit code."""

import json
from pathlib import Path

import typer

from raysft.cli import terminal
from raysft.errors import INTERRUPTED, RunError, UserError
from raysft.runs import rundir
from raysft.runs.events import End
from raysft.verbs.registry import VERBS


def finish(end: End, *, told: str, as_json: bool) -> None:
    """told: the mistake that is on the screen already. Ends in typer.Exit with the exit code.

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
    if as_json:
        print(json.dumps(summary, separators=(",", ":")))
    elif summary["status"] == "done":
        print(verb.done(summary))
    raise typer.Exit(code)
