"""Tables of a study: the columns are written down once, for the terminal and for Markdown."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table


class Column(NamedTuple):
    heading: str
    value: Callable[[Any], Any]  # of a row; None is an empty cell, text stays as it is
    form: str = ""  # a format specification for numbers
    justify: Literal["left", "right"] = "right"  # on the terminal


def cells(columns: Iterable[Column], row: Any) -> list[str]:
    values = [(column.value(row), column.form) for column in columns]
    return [
        value if isinstance(value, str) else "" if value is None else format(value, form)
        for value, form in values
    ]


def markdown_table(columns: Sequence[Column], rows: Iterable[Any]) -> list[str]:
    """Its lines; all cells are aligned to the right."""
    headings = " | ".join(column.heading for column in columns)
    lines = [f"| {headings} |", "|" + "---:|" * len(columns)]
    return lines + [f"| {' | '.join(cells(columns, row))} |" for row in rows]


def terminal_table(
    title: str,
    columns: Sequence[Column],
    rows: Iterable[Any],
    style: Callable[[Any], str],
    **options: Any,
) -> Table:
    """style: of a row. options: rich's, of the table."""
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, **options)
    for column in columns:
        table.add_column(column.heading, justify=column.justify)
    for row in rows:
        table.add_row(*cells(columns, row), style=style(row))
    return table


def how_it_was_measured(
    heading: str, facts: Iterable[tuple[str, str]], stamp: Mapping[str, Any]
) -> list[str]:
    """The lines that end each report: facts by name, and the command."""
    listed = [f"- {name}: {value}" for name, value in facts]
    return [f"## {heading}", "", *listed, "", "```", stamp["command"], "```", ""]
