"""The two consoles, and the forms of line that everything printed takes."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


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


def fact(name: str, value: str) -> None:
    stderr.print(f"  [dim]{name:<14}[/] {escape(value)}", soft_wrap=True)
