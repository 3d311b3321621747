"""`raysft doctor`, where it is typed: looks at the door of a cluster, and sends the rest inside."""

import tempfile
from pathlib import Path

import requests
import typer

from raysft.cli import console, terminal
from raysft.cli.launch import run_here
from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.runs import provenance, rundir
from raysft.runs.events import Check
from raysft.verbs.doctor import DOCTOR, PROVE

NAME = "doctor"  # of its jobs


def examine(
    config: Config, *, address: str | None, ship_code: bool, prove: bool, as_json: bool
) -> None:
    """Check this machine, or the cluster at `address`; ends in typer.Exit.

    Exit code 1 where a check has failed. Raises UserError and RunError.
    """
    if config.run.name is None:
        run_section = config.run.model_copy(update={"name": NAME})
        config = config.model_copy(update={"run": run_section})
    spec = {
        "verb": (PROVE if prove else DOCTOR).name,
        "config": config.model_dump(mode="json"),
        "stamp": provenance.submission(),
    }
    terminal.stderr.print(f"[bold]raysft doctor[/] of {address or 'this machine'}")
    if address is None:
        with tempfile.TemporaryDirectory(prefix="raysft-") as folder:
            rundir.write_run(Path(folder), spec)
            run_here(Path(folder), as_json=as_json)
    assert address is not None
    from raysft.carriers import jobs_api
    from raysft.cli.attach import watch

    show = console.Renderer()
    try:
        client = jobs_api.connect(address)
    except UserError as error:
        message, _, advice = str(error).partition(". ")
        show(Check("dashboard", "fail", message, advice))
        raise typer.Exit(1) from None
    show(Check("dashboard", "pass", f"answers at {address}"))
    token = check_token(address)
    show(token)
    job_id = jobs_api.submit(client, spec, config, ship_code=ship_code)
    try:
        watch(client, job_id, address, as_json=as_json)
    except typer.Exit as end:
        if end.exit_code == 0 and token.status == "fail":
            terminal.error("not ready: the cluster asks for no token")
            raise typer.Exit(1) from None
        raise


def check_token(address: str) -> Check:
    """Whether the cluster takes a request that carries none."""
    try:
        answer = requests.get(f"{address.rstrip('/')}/api/jobs/", timeout=20)
    except requests.RequestException as error:
        return Check("token", "warn", f"not looked at: {type(error).__name__}")
    if answer.status_code in (401, 403):
        return Check("token", "pass", "asked for: a request without it is refused")
    return Check(
        "token", "fail", "not asked for: whoever reaches the dashboard can run code on the cluster",
        "start Ray with RAY_AUTH_MODE=token on every node; cluster/README.md tells how",
    )  # fmt: skip
