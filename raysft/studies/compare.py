"""Two results of the same study side by side, and whether the second is worse."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from raysft.config.renamed import as_named_now
from raysft.errors import UserError
from raysft.studies.study import Point, Results, Study
from raysft.studies.tables import FittedTable, Heading


class Pair(NamedTuple):
    """The same point of both."""

    a: Point
    b: Point

    def worse(self, tolerance: float) -> bool:
        """A figure of the second is larger by more than the tolerance, or it did not end."""
        if self.b.status != "done":
            return self.a.status == "done"
        pairs = [(self.a.figures[name], self.b.figures[name]) for name in self.a.figures]
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        return any(y > x + tolerance * abs(x) for x, y in known)  # rewards lie below 0


def compare(
    study: Study,
    first: tuple[Path, Results],
    second: tuple[Path, Results],
    tolerance: float,
    out: Console,
) -> bool:
    """Print both and what differs; whether the second is worse. Raises UserError."""
    (path_a, a), (path_b, b) = first, second
    points_a, points_b = study.points(a), study.points(b)
    others = {point.label: point for point in points_b}
    found = [Pair(one, others[one.label]) for one in points_a if one.label in others]
    if not found:
        raise UserError(f"{path_a} and {path_b} have no case in common")
    for letter, path, results in (("A", path_a, a), ("B", path_b, b)):
        out.print(f"{letter}  {path}: {results.get('title', study.name)}")
    for line in differences(as_named_now(a["config"]), as_named_now(b["config"])):
        out.print(f"  {line}")
    out.print(comparison_table(found, tolerance))
    alone = len(points_a) + len(points_b) - 2 * len(found)
    if alone:
        out.print(f"{alone} cases are in one of them only")
    return any(pair.worse(tolerance) for pair in found)


def differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Keys of two configs that differ, with both values."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = sorted({*a, *b} - {"name", "storage"})
        return [
            line for key in keys for line in differences(a.get(key), b.get(key), f"{prefix}{key}.")
        ]
    return [] if a == b else [f"{prefix.rstrip('.')}: {a!r} and {b!r}"]


def comparison_table(found: list[Pair], tolerance: float) -> FittedTable:
    names = list(found[0].a.figures)
    headings = [Heading("case", "left", folds=True)]
    for name in names:
        headings += [Heading(f"A {name}"), Heading(f"B {name}"), Heading("B/A")]
    table = FittedTable(None, [*headings, Heading("", "left", folds=True)])
    for pair in found:
        worse = pair.worse(tolerance)
        table.add_row(
            pair.a.label,
            *(cell for name in names for cell in three(pair, name)),
            f"worse by more than {tolerance:.0%}" if worse else "",
            style="red" if worse else "",
        )
    return table


def three(pair: Pair, name: str) -> list[str]:
    """Both figures, or how their points ended, and the second to the first."""
    a, b = pair.a.figures[name], pair.b.figures[name]
    texts = [p.status if p.figures[name] is None else f"{p.figures[name]:.4g}" for p in pair]
    return [*texts, f"{b / a:.2f}" if a and b else ""]
