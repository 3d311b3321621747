"""Every key of the config as plain text, from the schema, for `raysft config list` and comments."""

import re
from functools import cache
from typing import NamedTuple

from pydantic.fields import FieldInfo

from raysft.config.near import did_you_mean
from raysft.config.reference import headings, hints, one_line, toml, type_words, units
from raysft.config.schema import Config
from raysft.config.section import Section
from raysft.errors import UserError


class Key(NamedTuple):
    name: str  # as --set takes it; in a table that lists hold, the name alone
    type: str
    default: str | None  # as TOML writes it; "none" where the key is absent; None if required
    unit: str
    meaning: str


class Table(NamedTuple):
    heading: str  # "[optim]", or the places whose lists hold it
    meaning: str
    keys: tuple[Key, ...]


@cache
def tables() -> tuple[Table, ...]:
    """Every table of a config, in the order of the page of keys."""
    return tuple(table_of(section, heading) for section, heading in headings().items())


def table_of(section: type[Section], heading: str) -> Table:
    words = plain(heading.lstrip("# "))
    named = re.fullmatch(r"\[([\w.]+)\].*", words)
    prefix = f"{named[1]}." if named else ""
    keys = []
    for name, hint in hints(section).items():
        field = section.model_fields[name]
        keys.append(
            Key(
                prefix + (field.alias or name),
                plain(type_words(hint)),
                default_of(field),
                next(units(hint), ""),
                plain(one_line(field.description)),
            )
        )
    return Table(words, plain(one_line(section.__doc__)), tuple(keys))


def default_of(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    return "none" if field.default is None else toml(field.default)


def plain(markdown: str) -> str:
    """Without links and marks of code."""
    return re.sub(r"\[([^\]]*)\]\(#[^)]*\)", r"\1", markdown).replace("`", "")


def keys() -> dict[str, Key]:
    """All keys that --set reaches, by name."""
    return {key.name: key for table in tables() for key in table.keys if "." in key.name}


def find_tables(wanted: str | None) -> list[Table]:
    """All, those of a section, or the one that holds the key that is named, with that key alone.

    Raises UserError where there is no such section or key.
    """
    if wanted is None:
        return list(tables())
    name = wanted.strip("[]")
    if name in keys():
        found = next(table for table in tables() if keys()[name] in table.keys)
        inner = [table for table in tables() if re.search(rf"\b{re.escape(name)}\b", table.heading)]
        return [found._replace(keys=(keys()[name],)), *inner]
    inside = re.compile(rf"(\[| |^){re.escape(name)}[].]")
    if chosen := [table for table in tables() if inside.search(table.heading)]:
        return chosen
    known = (*Config.model_fields, *keys())
    raise UserError(
        f"no section or key {wanted!r}{did_you_mean(name, known)}\n"
        f"sections: {', '.join(Config.model_fields)}"
    )
