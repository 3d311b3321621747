"""The two consoles, and the forms of line that everything printed takes."""

import sys
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from rich.console import Console
from rich.markup import escape

# In a notebook plain text: rich would make an output of HTML of every line, or draw over lines.
PLAIN: dict[str, Any] = {"force_jupyter": False, "force_terminal": False}
HOW = {"highlight": False} | (PLAIN if "ipykernel" in sys.modules else {})
stderr, stdout = Console(stderr=True, **HOW), Console(**HOW)


def error(message: str) -> None:
    """One red line, and what to do under it."""
    stderr.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def warning(message: str) -> None:
    # Whole in a log, where it is searched; at words in a terminal, where it is read.
    soft_wrap = not stderr.is_terminal
    stderr.print(f"[yellow]warning:[/] {escape(message)}", soft_wrap=soft_wrap)


def findings(rows: Sequence[Mapping[str, Any]]) -> None:
    """Each finding of the audit as a warning that says what to do."""
    for row in rows:
        what = "file" if row["name"] == "files_left_out" else "record"
        noun = f"{what}:" if row["records"] == 1 else f"{what}s:"
        warning(f"{row['records']:,} {noun} {row['message']}. What to do: {row['advice']}.")


def say(text: str) -> None:
    """To standard output: whole where it is read by a program, at words in a terminal."""
    stdout.print(text, soft_wrap=not stdout.is_terminal, markup=False)


def fact(name: str, value: str, console: Console = stderr) -> None:
    labelled(f"[dim]{name:<14}[/]", 14, value, console=console)


def labelled(
    label: str, label_width: int, value: str, style: str = "default", console: Console = stderr
) -> None:
    """A label, of so many characters without its markup, and beside it a text.

    Whole in a log; in a terminal broken at words, below each other.
    """
    lines = [value]
    if console.is_terminal:
        room = max(20, console.width - label_width - 3)
        lines = wrap(value, room, break_long_words=False, break_on_hyphens=False) or [""]
    for number, line in enumerate(lines):
        head = f"{label} " if number == 0 else " " * (label_width + 1)
        console.print(f"  {head}[{style}]{escape(line)}[/]", soft_wrap=True)
