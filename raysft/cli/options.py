"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from raysft.cli import completion

ConfigArgument = Annotated[
    str,
    typer.Argument(
        help="A TOML file, the name of a preset, or the folder of a run to start again.",
        autocompletion=completion.configs,
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override a config key.",
        autocompletion=completion.keys,
    ),
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
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Of a run, its folder, or the id of its job.",
        autocompletion=completion.run_names,
    ),
]
RunDirArgument = Annotated[
    Path,
    typer.Argument(help="A run directory or a checkpoint in it.", autocompletion=completion.runs),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Of its dashboard: http://HEAD:8265. Not needed where the run was submitted from.",
    ),
]
