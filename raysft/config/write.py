"""A raw config as TOML text, with the meaning of each key above it where that is wanted."""

import textwrap
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any

from raysft.config.keys import keys
from raysft.config.load import preset_names, preset_text
from raysft.config.reference import toml, toml_key
from raysft.config.schema import Config
from raysft.config.space import dotted

WIDTH = 100


def as_toml(
    raw: Mapping[str, Any],
    *,
    head: str = "",
    commented: bool = False,
    notes: Mapping[str, str] | None = None,
) -> str:
    """A config that tomllib reads back to `raw`, but for dotted keys of tune.space.

    commented: with what each key means, and the names of those that are left out. notes: why a key
    has its value, by its dotted name.
    """
    parts = [f"{head.strip()}\n"] if head.strip() else []
    for section, table in raw.items():
        parts.append("\n".join(section_lines(section, table, commented, notes or {})) + "\n")
    if commented:
        others = ", ".join(f"[{name}]" for name in Config.model_fields if name not in raw)
        parts.append(
            "\n".join(comment(f"Not set here: {others}. `raysft config list` tells.")) + "\n"
        )
    return "\n".join(parts)


def section_lines(
    section: str, table: Mapping[str, Any], commented: bool, notes: Mapping[str, str]
) -> Iterator[str]:
    yield f"[{section}]"
    known = keys()
    last = []
    for name, value in table.items():
        full = f"{section}.{name}"
        if commented and full in known:
            unit = f" [{known[full].unit}]" if known[full].unit else ""
            about = list(comment(known[full].meaning + unit))
        else:
            about = []
        about += comment(f"-> {notes[full]}") if full in notes else []
        if full == "tune.space":  # a table of its own, as a person writes it
            last = ["", *about, f"[{full}]", *pairs(dotted(dict(value)))]
        else:
            yield from (*about, *pairs({name: value}))
    if commented:
        rest = [key.split(".")[1] for key in known if is_left_out(key, section, table)]
        if rest:
            yield from comment(f"Also: {', '.join(rest)} (`raysft config list {section}`)")
    yield from last


def is_left_out(key: str, section: str, table: Mapping[str, Any]) -> bool:
    above, _, name = key.rpartition(".")
    return above == section and name not in table


def pairs(table: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{toml_key(key)} = {toml(value)}" for key, value in table.items())


def comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"


def head_of(source: str) -> str:
    """The lines of comment that a preset begins with; nothing for other sources."""
    if source not in preset_names():
        return ""
    lines = preset_text(source).splitlines()
    return "\n".join(takewhile(lambda line: line.startswith("#"), lines))
