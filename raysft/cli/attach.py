"""What a person does with runs on a cluster: start them, watch them, stop them, list them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from raysft.carriers import jobs_api, submitted, upload
from raysft.carriers.entrypoint import entrypoint
from raysft.cli import console, terminal
from raysft.cli.last_words import finish
from raysft.cli.runs_table import Run, cells, new_table, short_name
from raysft.config.schema import Config
from raysft.errors import INTERRUPTED, RunError, UserError
from raysft.runs.events import End, Event
from raysft.runs.rundir import RUN
from raysft.studies.tables import FittedTable
from raysft.verbs.registry import VERBS


def run_there(
    spec: dict[str, Any],
    config: Config,
    heading: str,
    rows: Sequence[tuple[str, str]],
    address: str,
    *,
    ship_code: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Submit a run and watch it; ends in typer.Exit. Raises UserError and RunError."""
    if not Path(config.run.storage).is_absolute():
        raise UserError(
            f"run.storage {config.run.storage!r} is relative: on a cluster it is an absolute path "
            "that all nodes share, as in --set run.storage=/shared/runs"
        )
    shipped = [str(path) for path in upload.local_paths(config)]
    terminal.stderr.print(heading, soft_wrap=True)
    shown = [*rows, ("code", "this checkout's" if ship_code else "the cluster's")]
    if shipped:
        shown.append(("shipped", ", ".join(shipped)))
    for row in shown:
        terminal.fact(*row)
    if dry_run:
        print(entrypoint(Path(spec["run_dir"]) / RUN))
        return
    client = jobs_api.connect(address)
    spec |= submitted.as_kept(address)
    job_id = jobs_api.submit(client, spec, config, ship_code=ship_code)
    submitted.remember(job_id, str(config.run.name), address)
    terminal.fact("job", job_id)
    watch(client, job_id, address, as_json=as_json)


def attach(name: str, address: str, *, as_json: bool) -> None:
    """Watch a run from its start; ends in typer.Exit. Raises UserError and RunError."""
    client = jobs_api.connect(address)
    job = jobs_api.find(client, name)
    verb, utc = job.metadata.get(jobs_api.VERB, ""), jobs_api.submitted(job)
    terminal.stderr.print(f"[bold]raysft {verb}[/] {job.submission_id}, submitted {utc}")
    watch(client, str(job.submission_id), address, as_json=as_json)


def watch(client: jobs_api.Client, job_id: str, address: str, *, as_json: bool) -> None:
    with console.Renderer() as render:
        try:
            end = jobs_api.follow(client, job_id, render, terminal.warning)
        except KeyboardInterrupt:
            render.live.stop()
            terminal.stderr.print(
                f"detached: {job_id} goes on. Watch it again, or stop it:\n"
                f"  raysft attach {job_id} --address {address}\n"
                f"  raysft stop {job_id} --address {address}",
                soft_wrap=True,
            )
            raise typer.Exit(INTERRUPTED) from None
    if render.end is None:
        raise RunError(died(job_id, end))
    finish(render.end, told=render.told, as_json=as_json)


def died(job_id: str, end: jobs_api.Ended) -> str:
    """What can be said of a job that has left no last event."""
    if "No module named raysft" in end.words:
        return (
            "the cluster's Python has no raysft: install it in its image (cluster/README.md), or "
            "send this checkout with --ship-code"
        )
    words = end.words or "its log is empty"
    return f"{job_id} ended without a word of its own (exit code {end.code}):\n{words}"


def stop(name: str, address: str) -> None:
    """Ask a run to end as after a first Ctrl-C, and wait until it has.

    Raises UserError and RunError.
    """
    client = jobs_api.connect(address)
    job = jobs_api.find(client, name)
    if job.status.is_terminal():
        raise UserError(f"{job.submission_id} has ended already: {job.status.value.lower()}")
    terminal.stderr.print(
        f"{job.submission_id} ends when its step, and a checkpoint if it takes any, are done; "
        f"it is killed if that takes more than {jobs_api.STOP_S / 60:.0f} minutes",
        soft_wrap=True,
    )
    client.stop_job(job.submission_id)
    seen: list[Event] = []
    ended = jobs_api.follow(client, str(job.submission_id), seen.append, terminal.warning)
    last = seen[-1] if seen else None
    if not isinstance(last, End):
        raise RunError(died(str(job.submission_id), ended))
    if last.summary["status"] == "interrupted":
        terminal.stderr.print(VERBS[last.summary["verb"]].interrupted(last.summary))
        return
    finish(last, told="", as_json=False)


def runs_table(address: str) -> FittedTable:
    """One row for each run that the cluster knows of. Raises UserError when there is none."""
    client = jobs_api.connect(address)
    jobs = jobs_api.runs(client)
    if not jobs:
        raise UserError(f"no run on {address}: `raysft train --address` submits one")
    table = new_table()
    for job in sorted(jobs, key=jobs_api.submitted):
        status = job.status.value.lower()
        summary: Mapping[str, Any] = {}
        if job.status.is_terminal():
            end = jobs_api.last_event(client, str(job.submission_id))
            summary = end.summary if end else {}
            status = summary.get("status", "died")
        name, verb = job.metadata[jobs_api.NAME], job.metadata.get(jobs_api.VERB, "")
        run = Run(Path(name), verb, status, jobs_api.submitted(job), summary=summary)
        table.add_row(short_name(name), *cells(run))
    return table
