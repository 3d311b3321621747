"""Keys of the config as a person reads them, at any width of the terminal."""

import textwrap
from collections.abc import Iterator, Sequence

from rich.text import Text

from raysft.config.keys import Key, Table

INDENT = " " * 4


def renderables(tables: Sequence[Table], width: int) -> Iterator[Text]:
    """width: columns, by which a type stands beside its key or below it."""
    for table in tables:
        yield Text(wrapped(f"{table.heading}  {table.meaning}", width, ""), style="bold")
        yield Text()
        for key in table.keys:
            yield from of_key(key, width)
        yield Text()


def of_key(key: Key, width: int) -> Iterator[Text]:
    default = ("  required", "yellow") if key.default is None else f" = {key.default}"
    first = Text.assemble("  ", (key.name, "cyan"), default)
    kind = f"{key.type} [{key.unit}]" if key.unit else key.type
    if len(first) + 2 + len(kind) <= width:
        yield Text.assemble(first, "  ", (kind, "dim"))
    else:
        yield first
        yield Text(wrapped(kind, width, INDENT), style="dim")
    yield Text(wrapped(key.meaning, width, INDENT))


def wrapped(text: str, width: int, indent: str) -> str:
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
