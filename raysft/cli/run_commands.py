"""Commands about runs that lie in folders: `raysft runs`, `runs show`, `runs rm`, `report`.

Light imports only.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from raysft.cli import completion, terminal
from raysft.cli.groups import ListByDefault
from raysft.cli.options import AddressOption, JsonOption
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.runs.lock import held

runs_app = typer.Typer(
    cls=ListByDefault,
    help="What ran, and how it ended: `raysft runs [DIR]` is `raysft runs list`.",
)
RunFolder = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run directory, or its name.", autocompletion=completion.run_names
    ),
]


@runs_app.command("list")
def list_runs(
    storage: Annotated[Path, typer.Argument(help="Where the runs lie.")] = Path("runs"),
    address: AddressOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what a dry run has only planned.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """The runs of a folder, or of the cluster at --address, the newest last.

    Example: raysft runs --address http://localhost:8265
    """
    if address is not None:
        from raysft.cli import attach

        if as_json or everything:
            raise UserError("--json and --all are of runs in a folder, not on a cluster")
        terminal.stdout.print(attach.runs_table(address))
        return
    from raysft.cli.runs_table import found_in, print_runs

    found = found_in(storage, planned=everything)
    if as_json:
        print(json.dumps([run.facts() for run in found], separators=(",", ":")))
    else:
        print_runs(found, storage)


@runs_app.command("show")
def show_run(run: RunFolder, as_json: JsonOption = False) -> None:
    """One run: what it was given, how it ended, where its time went, what can be done now.

    Example: raysft runs show first
    """
    from raysft.cli.runs_table import read, show

    found = read(run_folder(run))
    if as_json:
        print(json.dumps(found.facts() | {"summary": found.summary}, separators=(",", ":")))
    else:
        show(found)


@runs_app.command("rm")
def remove(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run directories, or names.",
            autocompletion=completion.run_names,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove runs with all that is in them: checkpoints, models, metrics.

    Example: raysft runs rm runs/first --yes
    """
    from raysft.cli.runs_table import read, size_words
    from raysft.cli.runs_table import remove as remove_run

    folders = list(dict.fromkeys(run_folder(run) for run in runs))  # all are there, or none goes
    for folder in folders:
        found = read(folder)
        if found.status == "running":
            with held(folder, terminal.warning):  # or it is told who writes there
                pass
        terminal.stderr.print(f"  {folder}: {found.status}, {size_words(folder)}", soft_wrap=True)
    these = "it" if len(folders) == 1 else f"these {len(folders)}"
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("nobody is there to be asked: give --yes")
        if not typer.confirm(f"Remove {these} for good?", err=True):
            raise typer.Exit(1)
    for folder in folders:
        remove_run(folder)
        print(f"removed {folder}")


def report(run: RunFolder) -> None:
    """Write report.md of a run, with its figure: something to send to a colleague.

    Example: raysft report runs/first
    """
    from raysft.verbs.registry import VERBS

    folder = run_folder(run)
    spec = rundir.read_run(folder / rundir.RUN, "verb", "config", "stamp")
    verb = VERBS.get(spec["verb"])
    if verb is not None and verb.study is not None:
        from raysft.studies.results import read

        verb.study.write_report(read(folder)[1], folder)
    elif verb is not None and verb.write_report is not None:
        if not verb.is_chain and not (folder / rundir.METRICS).exists():
            raise UserError(f"{folder} has taken no step yet: there is nothing to report")
        verb.write_report(folder)
    else:
        raise UserError(f"{folder} is of {spec['verb']!r}, which this raysft makes no report of")
    print(folder / rundir.REPORT)


def run_folder(given: str) -> Path:
    """The folder of a run, by its path or by its name in runs/. Raises UserError."""
    from difflib import get_close_matches

    storage = Path("runs")
    for folder in (Path(given), storage / given):
        if (folder / rundir.RUN).is_file():
            return folder
    names = [file.parent.name for file in storage.glob(f"*/{rundir.RUN}")]
    near = get_close_matches(Path(given).name, names, n=3, cutoff=0.5)
    advice = f": did you mean {', '.join(str(storage / name) for name in near)}?" if near else ""
    raise UserError(f"{given} is no run directory, and no run of {storage}/{advice}")


def add_to(app: typer.Typer) -> None:
    app.add_typer(runs_app, name="runs")
    app.command()(report)
