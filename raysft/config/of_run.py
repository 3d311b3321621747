"""A run as the config of another: what its run.json was started with. Light imports only."""

import json
import re
from pathlib import Path
from typing import Any

from raysft.errors import UserError

RUN = "run.json"  # in a run's folder
CHOSEN = "chosen"  # of run.json: key of the config to what "auto" came to


def run_folder(source: str) -> Path | None:
    """The folder of the run that is named by it or by its run.json; None for anything else."""
    path = Path(source).expanduser()
    if path.name == RUN and path.is_file():
        return path.parent
    return path if (path / RUN).is_file() else None


def config_of_run(folder: Path) -> dict[str, Any]:
    """The raw config of a run, for another run: without its name, and with "auto" where that was
    left to raysft, because another machine may come to something else.

    Raises UserError where run.json is damaged.
    """
    file = folder / RUN
    try:
        spec = json.loads(file.read_text())
        raw: dict[str, Any] = without_none(spec["config"])
        for key in spec.get(CHOSEN, {}):
            section, name = key.split(".")
            raw[section][name] = "auto"
        raw.get("run", {}).pop("name", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is no config: {type(error).__name__}: {error}. Is it what raysft wrote?"
        ) from None
    return raw


def without_none(table: dict[str, Any]) -> dict[str, Any]:
    """Of a config's dump: what is absent in it, which TOML has no value for."""
    return {
        key: without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def short_name(source: str) -> str:
    """What runs of this config are named after: its file or preset, or the run that it was of."""
    folder = run_folder(source)
    if folder is None:
        return Path(source).stem
    return re.sub(r"-\d{8}-\d{6}$", "", folder.resolve().name)  # its own time


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} to {"optim.lr": 1}."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
