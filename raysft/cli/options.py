"""Options that several commands share."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from raysft.cli import completion, terminal
from raysft.errors import UserError

if TYPE_CHECKING:
    from raysft.config.schema import Config

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
    typer.Argument(
        metavar="RUN",
        help="A run's folder or a checkpoint in it.",
        autocompletion=completion.runs,
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Of its dashboard: http://HEAD:8265. Not needed where the run was submitted from.",
    ),
]


class ConfigCommand(TyperCommand):
    """A command with `--set`: of an option that is none it tells which key is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # the class is private to typer
            if type(error).__name__ != "NoSuchOption":
                raise
            option = str(getattr(error, "option_name", ""))
            known = [name for parameter in self.params for name in parameter.opts]
            raise UserError(no_such_option(option, typed, known)) from None


def no_such_option(option: str, typed: Sequence[str], known: Sequence[str]) -> str:
    from raysft.config.near import SURE, key_meant

    key = key_meant(option.lstrip("-"))
    close = get_close_matches(option, known, n=1, cutoff=SURE)
    if key is None or close:
        return f"no such option {option}" + (f"; did you mean {close[0]}?" if close else "")
    words = [word for one in typed for word in one.split("=", 1)]
    after = words[words.index(option) + 1 :] if option in words else []
    value = after[0] if after and not after[0].startswith("--") else "VALUE"
    return f"no such option {option}: it is a key of the config, set by --set {key}={value}"


def read_config(source: str, overrides: list[str]) -> "Config":
    """The config of the options CONFIG and --set. Raises UserError."""
    from raysft.config.load import read_raw

    return validated(read_raw(source, overrides), source)


def validated(raw: Mapping[str, Any], source: str) -> "Config":
    """What is written by an old name is told. Raises UserError."""
    from raysft.config.load import validate
    from raysft.config.renamed import hints

    config = validate(raw, where=source)
    for hint in hints(raw):
        terminal.warning(hint)
    return config
