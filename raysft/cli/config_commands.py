"""`raysft config` and `raysft init`: find, look at, check and write configs. Light imports only."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from raysft.cli import completion, terminal
from raysft.cli.options import ConfigArgument, ConfigCommand, SetOption, read_config
from raysft.errors import UserError

config_app = typer.Typer(no_args_is_help=True, help="Find keys and presets; write configs.")
SectionArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[SECTION]",
        help="Such as optim, or a key such as optim.lr. Without it, all.",
        autocompletion=completion.sections_and_keys,
    ),
]


@config_app.command("list")
def list_keys(section: SectionArgument = None) -> None:
    """Every key with its default, type, meaning and unit.

    Example: raysft config list optim
    """
    from raysft.cli.key_tables import renderables
    from raysft.config.keys import find_tables
    from raysft.config.load import preset_names

    for part in renderables(find_tables(section), terminal.stdout.width):
        terminal.stdout.print(part)
    if section is None:
        terminal.stderr.print(f"presets: {', '.join(preset_names())}", markup=False)


@config_app.command(cls=ConfigCommand)
def show(config: ConfigArgument, overrides: SetOption = []) -> None:  # noqa: B006
    """A config with all its defaults, as TOML. That of a run is what starts it again.

    Example: raysft config show gpt2-tiny-cpu --set optim.lr=1e-3
    """
    from raysft.config.write import as_toml

    print(
        as_toml(read_config(config, overrides).model_dump(mode="json", exclude_none=True)), end=""
    )


@config_app.command(cls=ConfigCommand)
def copy(
    config: ConfigArgument,
    file: Annotated[Path, typer.Argument(help="The TOML file to write.")],
    overrides: SetOption = [],  # noqa: B006
) -> None:
    """Write a config to a file of your own, with what each of its keys means.

    Example: raysft config copy gpt2-tiny-cpu my.toml --set run.epochs=2
    """
    from raysft.config.load import parse_override, read_source, validate, with_overrides
    from raysft.config.of_run import run_folder
    from raysft.config.write import as_toml, head_of

    raw = with_overrides(read_source(config), dict(parse_override(text) for text in overrides))
    if run_folder(config):  # which holds every default
        raw = validate(raw, where=config).model_dump(mode="json", exclude_defaults=True)
    write_new(file, as_toml(raw, head=head_of(config), commented=True))
    print(file)


@config_app.command("check", cls=ConfigCommand)
def check_config(config: ConfigArgument, overrides: SetOption = []) -> None:  # noqa: B006
    """What a run of this config would come to, and what is wrong with it. Nothing is started.

    Example: raysft config check my.toml
    """
    from raysft.verbs.check import check
    from raysft.verbs.train import TRAIN

    resolved = read_config(config, overrides)
    warnings = check(None, resolved)
    for row in TRAIN.plan(resolved):
        terminal.fact(*row)
    for warning in warnings:
        terminal.warning(warning)
    print(f"{config} is valid")


def require_new(file: Path) -> None:
    """Raises UserError where a config cannot be written to it."""
    if file.suffix != ".toml":
        raise UserError(f"{file} must end in .toml, by which raysft knows a config")
    if file.exists():
        raise UserError(f"{file} is there already: choose another name, or remove it")
    if not file.parent.is_dir():
        raise UserError(f"{file} cannot be written: there is no folder {file.parent}")


def write_new(file: Path, text: str) -> None:
    """Raises UserError where there is something already, or it cannot be written."""
    require_new(file)
    try:
        with file.open("x") as opened:
            opened.write(text)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None


def init(
    file: Annotated[Path, typer.Argument(help="The TOML file to write.")] = Path("raysft.toml"),
    model: Annotated[
        str | None, typer.Option(help="A folder or hub id to start from, or `scratch`.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A file, folder, URI or hub id of records, or `demo`.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Folder that each run gets a folder in; default: runs.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A folder or hub id, where the model's own does not do.")
    ] = None,
) -> None:
    """Write a config for your model, your data and this machine. Asks for what is not given.

    Example: raysft init my.toml --model ./my-model --data records.jsonl
    """
    from raysft.verbs.init import Answers, begin, require_data, require_model, require_tokenizer
    from raysft.verbs.machine import this_machine

    require_new(file)
    given = model or data
    model = answer("model", "Model (a folder, a hub id, or scratch)", model, require_model)
    data = answer("data", "Records (a file, a folder, a hub id, or demo)", data, require_data)
    storage = answer(
        "storage", "Folder for runs", storage or ("runs" if given else None), str, "runs"
    )
    if model == "scratch" and data != "demo":
        question = "Tokenizer (a folder or a hub id)"
        tokenizer = answer("tokenizer", question, tokenizer, require_tokenizer)
    begun = begin(Answers(model, data, storage, tokenizer), this_machine())
    write_new(file, begun.text)
    for row in begun.facts:
        terminal.fact(*row)
    for warning in begun.warnings:
        terminal.warning(warning)
    terminal.stderr.print(f"wrote {file}. Look at what is trained, then train:", markup=False)
    name = shlex.quote(str(file))
    print(f"raysft data preview {name}\nraysft train {name}")


def answer(
    option: str,
    question: str,
    given: str | None,
    check: Callable[[str], str],
    default: str | None = None,
) -> str:
    """What was given, or else is typed; a mistake that is typed is asked for again.

    Raises UserError for a mistake that was given, and where nobody can be asked.
    """
    if given is not None:
        return check(given)
    if not sys.stdin.isatty():
        if default is not None:
            return default
        raise UserError(f"--{option} is needed where nobody can be asked: {question}")
    while True:
        try:
            return check(str(typer.prompt(question, default=default, err=True)).strip())
        except UserError as error:
            terminal.error(str(error))


def add_to(app: typer.Typer) -> None:
    app.command()(init)
    app.add_typer(config_app, name="config")
