"""Keys of the config as a person reads them, at any width of the terminal."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from raysft.config.keys import Key, Table

INDENT = 4


def renderables(tables: Sequence[Table], width: int) -> Iterator[RenderableType]:
    """width: columns, by which a type stands beside its key or below it."""
    for table in tables:
        yield Text.assemble((table.heading, "bold"), f"  {table.meaning}")
        yield Text()
        for key in table.keys:
            yield from of_key(key, width)
        yield Text()


def of_key(key: Key, width: int) -> Iterator[RenderableType]:
    default = ("  required", "yellow") if key.default is None else f" = {key.default}"
    first = Text.assemble("  ", (key.name, "cyan"), default)
    kind = Text(f"{key.type} [{key.unit}]" if key.unit else key.type, style="dim")
    if len(first) + 2 + len(kind) <= width:
        yield Text.assemble(first, "  ", kind)
    else:
        yield first
        yield Padding(kind, (0, 0, 0, INDENT), expand=False)
    yield Padding(Text(key.meaning), (0, 0, 0, INDENT), expand=False)
