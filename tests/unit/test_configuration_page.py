import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from raysft.config.data import Source
from raysft.config.reference import anchor, headings, hints, markdown, toml, units
from raysft.config.section import Section
from raysft.config.space import SPACE, Domain
from raysft.config.training import Schedule

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
FIELDS = [
    pytest.param(section, name, id=f"{section.__name__}.{name}")
    for section in headings()
    for name in section.model_fields
]


def rows() -> Iterator[tuple[str, list[str]]]:
    """The rows of all tables, each with the heading above it."""
    heading = ""
    for line in markdown().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if line.startswith("| `"):
            yield heading, [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def row(heading: str, key: str) -> list[str]:
    return next(cells for above, cells in rows() if (above, cells[0]) == (heading, f"`{key}`"))


def test_the_committed_page_is_that_of_the_schema() -> None:
    assert PAGE.read_text() == markdown(), (
        "docs/configuration.md is stale: python -m raysft.config.reference > docs/configuration.md"
    )


@pytest.mark.parametrize("section", headings(), ids=lambda section: section.__name__)
def test_every_section_has_an_introduction(section: type[Section]) -> None:
    assert vars(section)["__doc__"].endswith(".")


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_field_has_a_meaning(section: type[Section], name: str) -> None:
    meaning = section.model_fields[name].description
    assert meaning
    assert meaning.endswith(".")


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_a_default_is_written_as_toml_reads_it(section: type[Section], name: str) -> None:
    default = section.model_fields[name].get_default()
    if default is None or section.model_fields[name].is_required():
        return
    assert tomllib.loads(f"value = {toml(default)}")["value"] == plain(default)


def plain(value: Any) -> Any:
    """As tomllib has it; a key with a dot in it is a table in a table there."""
    if isinstance(value, Section):
        return plain(value.model_dump(exclude_none=True))
    if isinstance(value, tuple):
        return list(value)
    if not isinstance(value, Mapping):
        return value
    result: dict[str, Any] = {}
    for key, inner in value.items():
        section, _, name = key.rpartition(".")
        (result.setdefault(section, {}) if section else result)[name] = plain(inner)
    return result


def test_every_key_is_a_row_of_five_cells() -> None:
    found = [cells for _, cells in rows()]
    assert len(found) == len(FIELDS)
    assert {len(cells) for cells in found} == {5}


def test_every_link_on_the_page_leads_to_a_heading() -> None:
    there = {anchor(section) for section in headings()}
    assert {f"#{name}" for name in re.findall(r"\]\(#(.+?)\)", markdown())} <= there


def test_units_are_found_in_optional_types() -> None:
    assert list(units(hints(Schedule)["warmup_steps"])) == ["optimizer steps"]
    assert row("`[schedule]`", "warmup_ratio")[3] == "of all steps"
    assert row("`[bench]`", "seq_lens")[3] == "tokens"
    assert row("`[run]`", "name")[3] == ""


def test_types_are_in_the_words_of_toml_and_with_their_limits() -> None:
    assert row("`[batch]`", "seq_len")[1] == "integer, at least 8"
    assert row("`[model]`", "dropout")[1] == "number, 0 to below 1"
    assert row("`[optim]`", "betas")[1] == "list of 2 numbers, each 0 to 1"
    assert row("`[engine]`", "zero_stage")[1] == 'one of `0`, `1`, `2`, `3`, `"auto"`'
    assert row("`[log]`", "tensorboard")[1] == "true/false"
    two = "integer, at least 1, or list of 2 integers, each at least 1"
    assert row("`[scaling]`", "workers")[1] == two
    path = row("`[data]`", "path")[1]
    assert path == f"string, or list of strings or [tables]({anchor(Source)})"


def test_defaults_and_required_keys() -> None:
    assert row("`[optim]`", "lr")[2] == "`1e-5`"
    assert row("`[run]`", "storage")[2] == '`"runs"`'
    assert row("`[run]`", "max_steps")[2] == "*none*"
    assert row("`[model.shape]`", "n_layer")[2] == "**required**"
    assert row("`[data.fields]`", "prompt")[2] == "*none*"
    for key in SPACE:
        assert f"\n{key} = {{ " in markdown()


def test_a_domain_goes_by_the_names_of_the_file() -> None:
    assert row(headings()[Domain].lstrip("# "), "int")[1] == "list of 2 integers"
