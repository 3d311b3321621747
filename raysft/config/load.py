"""TOML file, preset or run, and overrides, to a valid `Config`; each mistake is a UserError."""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from raysft.config.near import did_you_mean, key_meant, suggested
from raysft.config.of_run import config_of_run, run_folder
from raysft.config.renamed import as_named_now
from raysft.config.schema import Config
from raysft.config.space import dotted
from raysft.config.spelling import line_hint, not_toml, value_form, value_hint
from raysft.errors import UserError


def preset_names() -> list[str]:
    presets = files("raysft") / "presets"
    return sorted(p.name.removesuffix(".toml") for p in presets.iterdir() if p.name[-5:] == ".toml")


def preset_text(name: str) -> str:
    return (files("raysft") / "presets" / f"{name}.toml").read_text()


def load_config(source: str, overrides: Iterable[str] = ()) -> Config:
    """The config of a TOML file, preset or run with `section.key=value` overrides applied.

    Raises UserError: no such file or preset, bad TOML, unknown key, wrong type or value.
    """
    return validate(read_raw(source, overrides), where=source)


def read_raw(source: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The same, not yet validated."""
    return with_overrides(read_source(source), dict(parse_override(text) for text in overrides))


def read_source(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix != ".toml" and source in preset_names():
        text = preset_text(source)
    elif folder := run_folder(source):
        return config_of_run(folder)
    elif path.is_file():
        text = read_text(path)
    else:
        known = preset_names()
        raise UserError(
            f"no config file or preset {source!r}{did_you_mean(source, known)}\n"
            f"presets: {', '.join(known)}"
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source} is not valid TOML: {error}{line_hint(text, error)}") from None


def read_text(path: Path) -> str:
    """Raises UserError where it is no text, or in another language than TOML."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a text in UTF-8: {error}") from None
    if words := not_toml(path, text):
        raise UserError(words)
    return text


def parse_override(text: str) -> tuple[str, Any]:
    """`optim.lr=1e-5` to ("optim.lr", 1e-5). A value that is not TOML is a plain string, and
    `none` puts the key back to its default."""
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        meant = key_meant(key.strip())
        hint = f"; did you mean {meant + equals + value!r}?" if meant else ""
        raise UserError(f"--set {text!r} is not of the form section.key=value{hint}")
    if value.strip() == "none":
        return key.strip(), None
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        if form := value_form(value.strip()):
            raise UserError(f"--set {text!r}: write {key.strip()}={form}") from None
        return key.strip(), value.strip()


def with_overrides(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a raw config with dotted keys set, or removed where the value is None.

    The one override path, for `--set` as for the trials and cases that are made from a config.
    """
    result: dict[str, Any] = json.loads(json.dumps(raw))
    for name, value in overrides.items():
        *sections, key = name.split(".")
        table = result
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise UserError(f"{name}: {section} is a value, not a section")
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value
    return result


def validate(raw: Mapping[str, Any], where: str) -> Config:
    """Raises UserError that names every wrong key, with its location and what was expected."""
    raw = as_named_now(raw)
    tune = raw.get("tune")
    if isinstance(tune, Mapping) and isinstance(tune.get("space"), Mapping):
        raw = {**raw, "tune": {**tune, "space": dotted(tune["space"])}}
    try:
        # Through JSON, so that a list of the TOML file is a tuple of the frozen schema.
        return Config.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        lines = [f"  {explain(detail)}" for detail in deepest(error.errors())]
        raise UserError(f"{where}: the config is not valid\n" + "\n".join(lines)) from None


def deepest(details: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Without those that only say that a value is not of the other kind it could have been."""
    places = [location_of(detail) for detail in details]
    return [
        detail
        for detail, place in zip(details, places, strict=True)
        if not any(other[: len(place)] == place and len(other) > len(place) for other in places)
    ]


def location_of(detail: ErrorDetails) -> list[str]:
    """A union such as `str | tuple[str, ...]` adds its member's name: that is left out."""
    parts = [str(part) for part in detail["loc"]]
    return [
        part
        for part in parts
        if part not in ("str", "Source") and not part.startswith(("tuple[", "function-"))
    ]


NO_DATA = (
    "data.path: this key is required: a file or folder of records, a URI, a hub id, or "
    '"demo" for the built-in records'
)
REQUIRED = {"data": NO_DATA, "data.path": NO_DATA}


def explain(detail: ErrorDetails) -> str:
    location = location_of(detail)
    dotted = ".".join(location)
    if detail["type"] == "extra_forbidden":
        return f"{dotted}: no such key{suggested(location, detail['input'])}"
    if detail["type"] == "missing":
        return REQUIRED.get(dotted, f"{dotted}: this key is required")
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if detail["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    value = detail["input"]
    return f"{dotted}: {message}, but it is {value!r}{value_hint(detail['type'], value)}"
