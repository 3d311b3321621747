"""What the shell offers after a Tab: presets, files, runs and keys. Light imports only."""

from collections.abc import Iterator
from pathlib import Path

from raysft.config.of_run import RUN

STORAGE = "runs"  # where runs lie unless a config says otherwise: a Tab reads no config


def configs(incomplete: str) -> list[str]:
    """Presets, TOML files, and the folders of runs."""
    from raysft.config.load import preset_names

    return [*starting(preset_names(), incomplete), *paths(incomplete, ".toml")]


def keys(incomplete: str) -> list[str]:
    """`optim.lr=`: what --set takes."""
    from raysft.config.keys import keys

    return starting([f"{key}=" for key in keys()], incomplete)


def sections_and_keys(incomplete: str) -> list[str]:
    from raysft.config.keys import keys
    from raysft.config.schema import Config

    return starting([*Config.model_fields, *keys()], incomplete)


def run_names(incomplete: str) -> list[str]:
    found = (file.parent.name for file in Path(STORAGE).glob(f"*/{RUN}"))
    return starting(sorted(found), incomplete)


def runs(incomplete: str) -> list[str]:
    """The folders of runs."""
    return list(paths(incomplete, None))


def paths(incomplete: str, suffix: str | None) -> Iterator[str]:
    """Below what is typed: runs, files that end so, and folders on the way to some.

    With nothing typed also the runs in `runs/`.
    """
    folder = Path(incomplete).expanduser().parent if incomplete else Path()
    if incomplete.endswith("/"):
        folder = Path(incomplete).expanduser()
    shown = incomplete[: incomplete.rfind("/") + 1]
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in found:
        name = shown + path.name
        if not name.startswith(incomplete) or path.name.startswith("."):
            continue
        if (path / RUN).is_file() or (suffix and path.suffix == suffix):
            yield name
        elif path.is_dir() and incomplete:
            yield name + "/"
    if not incomplete:
        yield from (f"{STORAGE}/{name}" for name in run_names(""))


def starting(words: list[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
