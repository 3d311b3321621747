"""The command of each verb that is submitted: from a config to a run, here or on a cluster.

An option that all of them have is written here alone. Light imports only.
"""

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysft.cli import completion, console, terminal
from raysft.cli.options import (
    AddressOption,
    ConfigArgument,
    JsonOption,
    SetOption,
    ShipCodeOption,
    read_config,
)
from raysft.errors import INTERRUPTED, RunError, UserError
from raysft.runs import rundir, undo
from raysft.runs.lock import held
from raysft.verbs.verb import Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config

NameOption = Annotated[
    str | None,
    typer.Option("--name", help="Name of the run directory.", autocompletion=completion.run_names),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the run --name from where it was.")
]
AcceptOption = Annotated[
    bool,
    typer.Option("--accept-changes", help="--resume with other data, tokenizer or template."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Write run.json, print the plan and the command, stop.")
]
ProfileOption = Annotated[
    bool, typer.Option("--profile", help="Trace a few steps and tell where their time went.")
]
PROFILE_STEPS = 5


@dataclass(frozen=True)
class Submission:
    """What was typed beside the config."""

    name: str | None
    resume: bool
    accept_changes: bool
    dry_run: bool
    as_json: bool
    address: str | None
    ship_code: bool


def command(verb: Verb) -> Callable[..., None]:
    """`raysft VERB CONFIG`, with the options that its verb can honour."""

    def submit(
        config: ConfigArgument,
        overrides: SetOption = [],  # noqa: B006 (typer reads the default, nothing changes it)
        name: NameOption = None,
        resume: ResumeOption = False,
        accept_changes: AcceptOption = False,
        dry_run: DryRunOption = False,
        as_json: JsonOption = False,
        address: AddressOption = None,
        ship_code: ShipCodeOption = False,
        profile: ProfileOption = False,
    ) -> None:

        profiled = [f"log.profile_steps={PROFILE_STEPS}"] if profile else []
        resolved = read_config(config, [*overrides, *profiled])
        typed = Submission(name, resume, accept_changes, dry_run, as_json, address, ship_code)
        launch(verb, config, resolved, typed)

    lacking = dict.fromkeys(("resume", "accept_changes"), verb.check_resume is None)
    lacking["profile"] = not verb.can_profile
    signature = inspect.signature(submit)
    kept = [option for name, option in signature.parameters.items() if not lacking.get(name)]
    submit.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    submit.__doc__ = f"{verb.help}\n\nExample: {verb.example}"
    return submit


def launch(verb: Verb, source: str, config: "Config", typed: Submission) -> None:
    """Run the job, here or on the cluster at `typed.address`, and show its events.

    source: the preset or file that the config came from. Ends in typer.Exit with the exit code of
    the run. Raises UserError and RunError.
    """
    from raysft.runs import provenance
    from raysft.verbs import plan
    from raysft.verbs.check import check
    from raysft.verbs.identities import ACCEPTS
    from raysft.verbs.settle import CHOSEN, as_chosen, chosen_before, dated

    if typed.accept_changes and not typed.resume:
        raise UserError("--accept-changes is about a run that goes on: give it with --resume")
    config = named(config, source, typed)
    run_dir = Path(config.run.storage) / str(config.run.name)
    chosen = chosen_before(run_dir) if typed.resume else {}
    config = dated(as_chosen(config, chosen), run_dir, resume=typed.resume)
    if config.scaling.elastic and not verb.is_elastic:
        raise UserError(
            f"raysft {verb.name} compares runs, which must have the same number of workers: set "
            "scaling.workers to one number"
        )
    rows = verb.plan(config)
    read, reads_data = verb.inputs(config)
    rows[1:1] = plan.inputs(read, reads_data=reads_data)
    address = os.environ.get("RAY_ADDRESS", "")
    if typed.address is None and address not in ("", "local"):
        rows.append(("cluster", f"{address}, which RAY_ADDRESS says; unset it to train here alone"))
    starts = typed.address is None and not typed.dry_run
    warnings = check(verb, config, elsewhere=typed.address is not None, starts=starts)
    spec: dict[str, Any] = {
        "verb": verb.name,
        "config": config.model_dump(mode="json"),
        "stamp": provenance.submission(),
    }
    spec |= {CHOSEN: chosen} if chosen else {}
    spec |= {ACCEPTS: True} if typed.accept_changes else {}
    if typed.address is not None:
        from raysft.cli.attach import run_there

        spec |= {"run_dir": str(run_dir), "resume": typed.resume}
        heading = f"[bold]raysft {verb.name}[/] {source} to {run_dir} on {typed.address}"
        run_there(
            spec, config, heading, rows, typed.address,
            ship_code=typed.ship_code, dry_run=typed.dry_run, as_json=typed.as_json,
        )  # fmt: skip
        return
    if typed.ship_code:
        raise UserError("--ship-code sends this checkout to a cluster: which one, --address?")
    for warning in warnings:
        terminal.warning(warning)
    heading = f"[bold]raysft {verb.name}[/] {source} to {run_dir}"
    before = undo.look(run_dir)
    try:
        start_here(verb, spec, config, run_dir, heading, rows, typed)
    except UserError:
        undo.remove_empty(before)
        raise
    except typer.Exit as end:
        if end.exit_code == UserError.exit_code and not typed.resume:
            undo.put_back(before)
        raise


def start_here(
    verb: Verb,
    spec: dict[str, Any],
    config: "Config",
    run_dir: Path,
    heading: str,
    rows: list[tuple[str, str]],
    typed: Submission,
) -> None:
    """Write run.json and run it, as the only writer in the folder.

    Raises UserError and RunError.
    """
    from raysft.carriers.entrypoint import entrypoint
    from raysft.verbs.identities import known_before
    from raysft.verbs.resume import admit

    if typed.resume:
        rundir.read_json(run_dir / rundir.RUN)  # or a folder would be made for a name misspelt
    with held(run_dir, terminal.warning):
        for warning in admit(verb, run_dir, config, resume=typed.resume):
            terminal.warning(warning)
        spec |= known_before(run_dir) if typed.resume else {}
        rundir.write_run(run_dir, spec)
        terminal.stderr.print(heading)
        for row in rows:
            terminal.fact(*row)
        if typed.dry_run:
            print(entrypoint(run_dir / rundir.RUN))
            return
        run_here(run_dir, as_json=typed.as_json)


def named(config: "Config", source: str, typed: Submission) -> "Config":
    """With the name of its run: what was typed, that of the config, or its source and the time.

    Raises UserError for a name that is none.
    """
    from raysft.config.of_run import run_folder, short_name
    from raysft.config.section import run_name

    name = typed.name
    if name is None and config.run.name is None:
        if typed.resume and (folder := run_folder(source)):  # which is the one to go on with
            run_section = config.run.model_copy(
                update={"name": folder.resolve().name, "storage": str(folder.parent)}
            )
            return config.model_copy(update={"run": run_section})
        if typed.resume:
            raise UserError(f"--resume needs --name: which run in {config.run.storage}/?")
        stem = re.sub(r"[^\w.+=@-]+", "-", short_name(source)).lstrip("-.+=@")[:80] or "run"
        name = f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if name is None:
        return config
    try:
        run_name(name)
    except ValueError as error:
        raise UserError(f"--name: {error}") from None
    run_section = config.run.model_copy(update={"name": name})
    return config.model_copy(update={"run": run_section})


def run_here(run_dir: Path, *, as_json: bool) -> None:
    """Run the run.json of this folder and show its events; ends in typer.Exit. Raises RunError."""
    from raysft.carriers.local import run_local
    from raysft.cli.last_words import finish

    with console.Renderer() as render:
        code = run_local(run_dir, render)
    log = run_dir / rundir.LOG
    if render.end is None:
        if code == INTERRUPTED:
            terminal.error(f"killed before it could end; see {log}")
            raise typer.Exit(code)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise RunError(f"the job ended without a word (exit code {code}); {log} ends:\n{tail}")
    finish(render.end, told=render.told, as_json=as_json)
