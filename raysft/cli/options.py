"""Options that several commands share."""

from typing import TYPE_CHECKING, Annotated

import typer

from raysft.cli import terminal

if TYPE_CHECKING:
    from raysft.config.schema import Config

ConfigArgument = Annotated[str, typer.Argument(help="A TOML file, or the name of a preset.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a config key.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="End standard output with one line of JSON.")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", help="Of a cluster's dashboard: http://HEAD:8265."),
]
ShipCodeOption = Annotated[
    bool, typer.Option("--ship-code", help="Run this raysft there, not the cluster's own.")
]
RunArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of a run, or the id of its job.")]
ClusterOption = Annotated[
    str, typer.Option("--address", metavar="URL", help="Of its dashboard: http://HEAD:8265.")
]


def read_config(source: str, overrides: list[str]) -> "Config":
    """The config of the options CONFIG and --set; what is written by an old name is told.

    Raises UserError.
    """
    from raysft.config.load import read_raw, validate
    from raysft.config.renamed import hints

    raw = read_raw(source, overrides)
    config = validate(raw, where=source)
    for hint in hints(raw):
        terminal.warning(hint)
    return config
