"""What every study is, as a value: `raysft bench report` and `compare` take the results of any."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import RenderableType

Results = Mapping[str, Any]  # a results.json, see studies.results
Case = Mapping[str, Any]  # of its `cases`: what was measured at one point with one seed


def done(results: Results) -> list[Case]:
    """The cases that ended well."""
    return [case for case in results["cases"] if case["status"] == "done"]


class Point(NamedTuple):
    """One point of a study, as it is set beside the same point of other results."""

    label: str  # equal for equal points, such as "1,024 x 4"
    status: str  # "done", or why it did not end
    figures: Mapping[str, float | None]  # by what they are; the less, the better


@dataclass(frozen=True)
class Study:
    """Its functions read nothing but the results."""

    name: str  # `study` in results.json
    write_report: Callable[[Results, Path], None]  # report.md and figures into a folder
    tables: Callable[[Results], Iterable[RenderableType]]
    verdict: Callable[[Results], str]  # the question of the study, answered in a sentence or two
    points: Callable[[Results], list[Point]]
    # A case as it ends, for the console: what it is, and how it went.
    words: Callable[[Case], tuple[str, str]]
