"""report.md of a study: what a text claims, what was found, tables, and how it was measured."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import RenderableType

from raysft.runs import rundir
from raysft.studies.study import Case, Point, Results, Study, done
from raysft.studies.tables import how_it_was_measured


class Page(NamedTuple):
    """What differs from one study to the next."""

    title: str
    figure: str  # its file
    shows: str  # what the figure shows, for whoever does not see it
    claim: str  # that is put to the test
    draw: Callable[[Results, Path], None]
    verdict: Callable[[Results], str]
    words: Callable[[Case], tuple[str, str]]  # which case, and how it went
    sections: Callable[[Results], list[str]]  # lines of Markdown
    meanings: Sequence[str]  # lines: what the columns mean
    facts: Callable[[Results], list[tuple[str, str]]]  # of how it was measured


def study(
    name: str,
    page: Page,
    tables: Callable[[Results], Iterable[RenderableType]],
    points: Callable[[Results], list[Point]],
) -> Study:
    """The study that has this page as its report."""
    return Study(
        name=name,
        write_report=partial(write, page),
        tables=tables,
        verdict=page.verdict,
        points=points,
        words=page.words,
    )


def write(page: Page, results: Results, folder: Path) -> None:
    """report.md and its figure, in `folder`."""
    if done(results):
        page.draw(results, folder / page.figure)
    (folder / rundir.REPORT).write_text(markdown(page, results))


def markdown(page: Page, results: Results) -> str:
    figure = [f"![{page.shows}]({page.figure})", ""] if done(results) else []
    failed = [case for case in results["cases"] if case["status"] != "done"]
    lines = [
        f"# {page.title}",
        "",
        *figure,
        f"{page.claim}. {page.verdict(results)}",
        "",
        *(f"- {' '.join(page.words(case))}" for case in failed),
        *page.sections(results),
        *page.meanings,
        "",
        *how_it_was_measured("How it was measured", page.facts(results), results["stamp"]),
    ]
    return "\n".join(lines)
