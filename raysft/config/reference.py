"""The page of keys, made from the schema. `python -m raysft.config.reference` prints it."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from raysft.config.schema import Config
from raysft.config.section import Section, Unit

HEAD = """\
# Configuration

This page is generated from the schema in [raysft/config](../raysft/config): do not edit it, but run
`python -m raysft.config.reference > docs/configuration.md`.

A config is a TOML file, or one of the presets that come with raysft. Each section below is a table
of that file. Any key can also be set on the command line, as in `--set optim.lr=2e-5`;
`--set optim.lr=none` puts it back to its default. A key that is not on this page is an error.

A default of *none* means that the key is absent, and its meaning says what applies then.
"""
COLUMNS = ("Key", "Type", "Default", "Unit", "Meaning")
NOUNS = {  # of one, of many
    bool: ("true/false", "true/false"),
    int: ("integer", "integers"),
    float: ("number", "numbers"),
    str: ("string", "strings"),
}


def markdown() -> str:
    """The whole page. It depends on the schema only."""
    links = ", ".join(f"[{name}](#{name})" for name in Config.model_fields)
    blocks = [HEAD, f"Sections: {links}.\n"]
    for section, heading in headings().items():
        blocks += [heading + "\n", one_line(section.__doc__) + "\n", table(section)]
        blocks += large_defaults(section)
    return "\n".join(blocks)


@cache
def headings() -> dict[type[Section], str]:
    """Of every section of the config, and below it of the tables that its keys hold."""
    result: dict[type[Section], str] = {}
    for name, hint in hints(Config).items():
        result[hint] = f"## `[{name}]`"
        for key, inner in hints(hint).items():
            place = f"`{name}.{key}`"
            for held in tables_in(inner):
                if held in members(inner):
                    result[held] = f"### `[{name}.{key}]`"
                elif held in result:
                    result[held] += f" or {place}"
                else:
                    result[held] = f"### A table in {place}"
    return result


def anchor(section: type[Section]) -> str:
    """As GitHub makes it of a heading."""
    words = headings()[section].lstrip("# ").lower()
    return "#" + re.sub(r"[^\w -]", "", words).replace(" ", "-")


def table(section: type[Section]) -> str:
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for name, hint in hints(section).items():
        field = section.model_fields[name]
        rows.append(
            (
                f"`{field.alias or name}`",
                type_words(hint),
                default_words(field),
                next(units(hint), ""),
                one_line(field.description),
            )
        )
    return "".join("| " + " | ".join(map(escape, row)) + " |\n" for row in rows)


def hints(section: type[Section]) -> dict[str, Any]:
    """The types of its keys with their limits and units."""
    found = get_type_hints(section, include_extras=True)
    return {name: found[name] for name in section.model_fields}


def members(hint: Any) -> list[Any]:
    """The types a value may have, but for None: the key is absent then."""
    if get_origin(hint) in (Union, UnionType):
        return [inner for part in get_args(hint) for inner in members(part)]
    return [] if hint is NoneType else [hint]


def tables_in(hint: Any) -> Iterator[type[Section]]:
    if isinstance(hint, type) and issubclass(hint, Section):
        yield hint
    for part in get_args(hint):
        yield from tables_in(part)


def units(hint: Any) -> Iterator[str]:
    for part in get_args(hint):
        if isinstance(part, Unit):
            yield part.words
        yield from units(part)


def type_words(hint: Any, *, many: bool = False) -> str:
    """In the words of TOML, with the limits; `many`: of the items of a list."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return with_limits(type_words(parts[0], many=many), parts[1:], many=many)
    if origin in (Union, UnionType):
        return either([type_words(member, many=many) for member in members(hint)])
    if origin is Literal:
        listed = ", ".join(f"`{toml(value)}`" for value in parts)
        return listed if len(parts) == 1 else f"{'any' if many else 'one'} of {listed}"
    if origin is tuple:
        count = "" if Ellipsis in parts else f"{len(parts)} "
        return f"list of {count}{type_words(parts[0], many=True)}"
    if origin is Mapping:
        held = "" if parts[1] is Any else f" of {type_words(parts[1], many=True)}"
        return f"table{'s' * many}{held}"
    if issubclass(hint, Section):
        return f"[{'tables' if many else 'table'}]({anchor(hint)})"
    return NOUNS[hint][many]


def either(words: list[str]) -> str:
    if "numbers" in words:
        words = [word for word in words if word != "integers"]
    if len(words) == 1:
        return words[0]
    comma = "," if any(" " in word for word in words) else ""
    return f"{', '.join(words[:-1])}{comma} or {words[-1]}"


def with_limits(words: str, marks: tuple[Any, ...], *, many: bool) -> str:
    names = ("ge", "gt", "le", "lt", "min_length")
    limits: dict[str, Any] = {
        name: getattr(limit, name)
        for mark in marks
        if isinstance(mark, FieldInfo)
        for limit in mark.metadata
        for name in names
        if hasattr(limit, name)
    }
    each = ", each " if many else ", "
    match limits:
        case {"min_length": 1}:
            return f"non-empty {words}"
        case {"ge": low, "le": high}:
            return f"{words}{each}{low:g} to {high:g}"
        case {"ge": low, "lt": high}:
            return f"{words}{each}{low:g} to below {high:g}"
        case {"ge": low}:
            return f"{words}{each}at least {low:g}"
        case {"gt": low}:
            return f"{words}{each}above {low:g}"
        case _ if not limits:
            return words
        case _:
            raise NotImplementedError(f"no words for the limits {limits}")


def default_words(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    if field.default is None:
        return "*none*"
    large = isinstance(field.default, Mapping) and field.default
    return "below" if large else f"`{toml(field.default)}`"


def large_defaults(section: type[Section]) -> Iterator[str]:
    """What is too long for a cell."""
    for name, field in section.model_fields.items():
        if isinstance(field.default, Mapping) and field.default:
            lines = [f"{key} = {toml(value)}\n" for key, value in field.default.items()]
            header = f"[{section.__name__.lower()}.{name}]\n"
            yield f"Default of `{name}`:\n\n```toml\n{header}{''.join(lines)}```\n"


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case float():
            return repr(value).replace("e-0", "e-")
        case Section():
            return toml(value.model_dump(exclude_none=True))
        case tuple() | list():
            return f"[{', '.join(map(toml, value))}]"
        case Mapping():
            pairs = ", ".join(f"{toml_key(key)} = {toml(inner)}" for key, inner in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case _:
            return str(value)


def toml_key(key: str) -> str:
    """Bare where TOML allows it; a dotted one stays dotted."""
    return key if re.fullmatch(r"[\w-]+(\.[\w-]+)*", key, re.ASCII) else json.dumps(key)


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def escape(cell: str) -> str:
    return cell.replace("|", r"\|")


if __name__ == "__main__":
    print(markdown(), end="")
