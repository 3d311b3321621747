"""Tables of a study: the columns are written down once, for the terminal and for Markdown."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


class Column(NamedTuple):
    heading: str
    value: Callable[[Any], Any]  # of a row; None is an empty cell, text stays as it is
    form: str = ""  # a format specification for numbers
    justify: Literal["left", "right"] = "right"  # on the terminal
    goes: int = 0  # the order in which columns are left out of a narrow terminal; 0: it stays


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


class Heading(NamedTuple):
    """Of a column of a FittedTable."""

    text: str  # with line breaks where it may be broken
    justify: Literal["left", "right"] = "right"
    goes: int = 0  # as of a Column
    folds: bool = False  # text that may be broken over lines, as no number is
    style: str = ""


@dataclass
class FittedTable:
    """A table that leaves columns out where the terminal is too narrow for all, and says which.

    It first moves its columns together; no number is ever cut.
    """

    title: str | None
    headings: Sequence[Heading]
    caption: str | None = None
    rows: list[tuple[Sequence[str], str]] = field(default_factory=list)  # cells, style

    def add_row(self, *cells: str, style: str = "") -> None:
        self.rows.append((cells, style))

    @property
    def row_count(self) -> int:
        return len(self.rows)

    def table(self, shown: Sequence[int], gap: int, *, wraps: bool = False) -> Table:
        """With these columns, and so many blanks between them; wraps: all of them, at words."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0), show_edge=False)
        for number in shown:
            heading = self.headings[number]
            table.add_column(
                heading.text, justify=heading.justify,
                no_wrap=not heading.folds and not wraps, overflow="fold", style=heading.style,
            )  # fmt: skip
        for row, style in self.rows:
            table.add_row(*(row[number] for number in shown if number < len(row)), style=style)
        return table

    def fitted(self, console: Console, options: ConsoleOptions) -> tuple[Table, Sequence[int]]:
        """The widest that fits, and the numbers of the columns that it leaves out.

        Where those that go are not enough, text folds. Where there is none all wrap at words, and
        then the last ones go, but never the first.
        """
        wide = options.update(max_width=10_000)
        going = sorted((n for n, h in enumerate(self.headings) if h.goes),
                       key=lambda n: self.headings[n].goes)  # fmt: skip
        for count in range(len(going) + 1):
            for gap in (3, 2, 1):
                table = self.table(self.without(going[:count]), gap)
                if Measurement.get(console, wide, table).maximum <= options.max_width:
                    return table, going[:count]
        if any(heading.folds for heading in self.headings):
            return table, going
        staying = self.without(going)
        while True:
            table = self.table(self.without(going), gap, wraps=True)
            words = Measurement.get(console, wide, table).minimum
            if words <= options.max_width or len(staying) == 1:
                return table, going
            going.append(staying.pop())

    def without(self, out: Sequence[int]) -> list[int]:
        return [number for number in range(len(self.headings)) if number not in out]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterable[RenderableType]:
        table, out = self.fitted(console, options)
        if self.title:
            yield Text(self.title, style="bold")
        yield table
        if self.caption:
            yield Text(self.caption, style="dim")
        if out:
            names = ", ".join(self.headings[n].text.replace("\n", " ") for n in sorted(out))
            yield Text(f"Not shown in {options.max_width} columns: {names}", style="dim")
        yield Text("")


def terminal_table(
    title: str,
    columns: Sequence[Column],
    rows: Iterable[Any],
    style: Callable[[Any], str] = lambda _: "",
) -> FittedTable:
    """style: of a row."""
    headings = [Heading(c.heading, c.justify, c.goes) for c in columns]
    table = FittedTable(title, headings)
    for row in rows:
        table.add_row(*cells(columns, row), style=style(row))
    return table


def how_it_was_measured(
    heading: str, facts: Iterable[tuple[str, str]], stamp: Mapping[str, Any]
) -> list[str]:
    """The lines that end each report: facts by name, and the command."""
    listed = [f"- {name}: {value}" for name, value in facts]
    return [f"## {heading}", "", *listed, "", "```", stamp["command"], "```", ""]
