"""Commands about runs that are under way or over, here or on a cluster. Light imports only."""

from pathlib import Path
from typing import Annotated

import typer

from raysft.cli import terminal
from raysft.cli.options import (
    AddressOption,
    ClusterOption,
    JsonOption,
    RunArgument,
    SetOption,
    ShipCodeOption,
    read_config,
)


def attach(name: RunArgument, address: ClusterOption, as_json: JsonOption = False) -> None:
    """Watch a run on a cluster, from its start to its end. Ctrl-C leaves it alone."""
    from raysft.cli import attach

    attach.attach(name, address, as_json=as_json)


def stop(name: RunArgument, address: ClusterOption) -> None:
    """End a run on a cluster, after its step and a checkpoint."""
    from raysft.cli import attach

    attach.stop(name, address)


def runs(
    storage: Annotated[Path, typer.Argument(help="Where the runs lie.")] = Path("runs"),
    address: AddressOption = None,
) -> None:
    """What ran, and how it ended: in a folder, or on the cluster at --address."""
    if address is not None:
        from raysft.cli import attach

        terminal.stdout.print(attach.runs_table(address))
        return
    from raysft.cli.runs_table import runs_table

    terminal.stdout.print(runs_table(storage))


def doctor(
    config: Annotated[
        str, typer.Argument(help="Of the run it is to be ready for; a preset or a TOML file.")
    ] = "gpt2-tiny-cpu",
    overrides: SetOption = [],  # noqa: B006
    address: AddressOption = None,
    ship_code: ShipCodeOption = False,
    prove: Annotated[
        bool, typer.Option("--prove", help="Train tiny models there against plain PyTorch, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Is this machine or cluster ready, and if not, what to do."""
    from raysft.cli.doctor import examine

    resolved = read_config(config, overrides)
    examine(resolved, address=address, ship_code=ship_code, prove=prove, as_json=as_json)


def add_to(app: typer.Typer) -> None:
    for command in (attach, stop, runs, doctor):
        app.command()(command)
