"""What travels with a job, and what of its log is handed on."""

import json
from pathlib import Path

import pytest

from raysft.carriers import upload
from raysft.carriers.jobs_api import Log
from raysft.config.load import load_config
from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.runs.events import Event, Status, to_wire


def config(*overrides: str) -> Config:
    return load_config("gpt2-tiny-cpu", ["model.tokenizer=tokenizer", *overrides])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client's folder, with data in several places."""
    folder = tmp_path / "here"
    for name in ("a.json", "b.json", "sub/c.jsonl", "tokenizer/tokenizer.json", "../beside.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    monkeypatch.chdir(folder)
    return folder


def packed(tmp_path: Path, *overrides: str, code: bool = False) -> list[str]:
    folder = tmp_path / "packed"
    folder.mkdir()
    upload.pack({"verb": "train"}, config(*overrides), folder, code=code)
    assert json.loads((folder / rundir.RUN).read_text()) == {"verb": "train"}
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if str(path) != rundir.RUN)


def test_relative_paths_travel_and_absolute_ones_are_the_clusters(
    here: Path, tmp_path: Path
) -> None:
    paths = 'data.path=["a.json", {path = "sub", weight = 2}, "s3://bucket/x.json", "owner/name"]'
    absolute = f"data.eval_path={here / 'b.json'}"
    assert packed(tmp_path, paths, absolute) == [
        "a.json",
        "sub/c.jsonl",
        "tokenizer/tokenizer.json",
    ]


@pytest.mark.usefixtures("here")
def test_globs_travel(tmp_path: Path) -> None:
    assert packed(tmp_path, "data.path=*.json")[:2] == ["a.json", "b.json"]


@pytest.mark.usefixtures("here")
def test_code_travels_if_asked(tmp_path: Path) -> None:
    found = packed(tmp_path, "data.path=a.json", code=True)
    assert {"raysft/job.py", "raysft/presets/gpt2.toml"} <= set(found)
    assert not [name for name in found if "__pycache__" in name]


@pytest.mark.usefixtures("here")
def test_a_file_outside_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"beside.json lies outside .*absolute path"):
        packed(tmp_path, "data.path=../beside.json")


def test_large_files_are_told(here: Path, tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        with (here / name).open("wb") as file:
            file.truncate(40 << 20)
    with pytest.raises(UserError, match=r"takes 64 MiB: .*a.json 40 MiB, b.json 40 MiB"):
        packed(tmp_path, 'data.path=["a.json", "b.json"]')


def lines_of(count: int) -> tuple[list[Event], str]:
    events: list[Event] = [Status("ä" * step) for step in range(count)]
    lines = (json.dumps(to_wire(event)) for event in events)
    return events, "".join(f"{line}\nnot an event {n}\n" for n, line in enumerate(lines))


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
def test_a_log_that_is_read_again_is_handed_on_once(size: int) -> None:
    """In chunks that end anywhere, and with breaks at several places."""
    events, text = lines_of(20)
    found: list[Event] = []
    log = Log(found.append)
    for end in (30, 300, 299, len(text)):
        log.from_start()
        for start in range(0, end, size):
            log.feed(text[start : min(start + size, end)])
    assert found == events
    assert log.others == [f"not an event {step}" for step in range(20)]
