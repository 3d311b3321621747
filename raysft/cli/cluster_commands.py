"""Commands about runs that are under way or over, here or on a cluster. Light imports only."""

from typing import Annotated

import typer

from raysft.cli import completion
from raysft.cli.options import (
    AddressOption,
    ClusterOption,
    JsonOption,
    RunArgument,
    SetOption,
    ShipCodeOption,
    read_config,
)


def attach(name: RunArgument, address: ClusterOption = None, as_json: JsonOption = False) -> None:
    """Watch a run on a cluster, from its start to its end. Ctrl-C leaves it alone.

    Example: raysft attach there --address http://localhost:8265
    """
    from raysft.carriers import submitted
    from raysft.cli import attach

    attach.attach(*submitted.find(name, address), as_json=as_json)


def stop(name: RunArgument, address: ClusterOption = None) -> None:
    """End a run on a cluster, after its step and a checkpoint.

    Example: raysft stop there
    """
    from raysft.carriers import submitted
    from raysft.cli import attach

    attach.stop(*submitted.find(name, address))


def doctor(
    config: Annotated[
        str,
        typer.Argument(
            help="Of the run it is to be ready for; a preset, a TOML file or a run.",
            autocompletion=completion.configs,
        ),
    ] = "gpt2-tiny-cpu",
    overrides: SetOption = [],  # noqa: B006
    address: AddressOption = None,
    ship_code: ShipCodeOption = False,
    prove: Annotated[
        bool, typer.Option("--prove", help="Train tiny models there against plain PyTorch, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Is this machine or cluster ready, and if not, what to do.

    Example: raysft doctor gpt2-large --address http://localhost:8265
    """
    from raysft.cli.doctor import examine

    resolved = read_config(config, overrides)
    examine(resolved, address=address, ship_code=ship_code, prove=prove, as_json=as_json)


def add_to(app: typer.Typer) -> None:
    for command in (attach, stop, doctor):
        app.command()(command)
