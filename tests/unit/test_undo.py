"""A folder as it was before a submission that was a mistake, and no other."""

from pathlib import Path

import pytest

from raysft.runs import rundir, undo
from raysft.runs.lock import FILE as LOCK


def first_files(run_dir: Path) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in undo.FIRST_FILES:
        (run_dir / name).write_text("new")


def test_what_a_mistake_has_made_goes(tmp_path: Path) -> None:
    before = undo.look(tmp_path / "a/runs/x")
    first_files(tmp_path / "a/runs/x")
    undo.put_back(before)
    assert not any(tmp_path.iterdir())


def test_a_folder_beside_it_stays(tmp_path: Path) -> None:
    before = undo.look(tmp_path / "runs/x")
    first_files(tmp_path / "runs/x")
    (tmp_path / "runs/y").mkdir()
    undo.put_back(before)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["y"]


def test_what_was_there_is_put_back(tmp_path: Path) -> None:
    old = {rundir.RUN: "plan", rundir.LOG: "said", "notes.txt": "mine"}
    for name, content in old.items():
        (tmp_path / name).write_text(content)
    before = undo.look(tmp_path)
    (tmp_path / rundir.RUN).write_text("new")
    (tmp_path / rundir.LOG).open("a").write(" more")
    (tmp_path / rundir.SUMMARY).write_text("new")
    undo.put_back(before)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == old


@pytest.mark.parametrize("name", [rundir.METRICS, rundir.CHECKPOINTS, LOCK, "of somebody else"])
def test_a_folder_with_more_is_left_alone(tmp_path: Path, name: str) -> None:
    """It has trained, or is another's now."""
    before = undo.look(tmp_path / "x")
    first_files(tmp_path / "x")
    (tmp_path / "x" / name).touch()
    undo.put_back(before)
    assert {path.name for path in (tmp_path / "x").iterdir()} == {*undo.FIRST_FILES, name}


def test_a_folder_that_was_never_made(tmp_path: Path) -> None:
    undo.put_back(undo.look(tmp_path / "x"))
    assert not any(tmp_path.iterdir())


def test_of_what_was_refused_no_file_is_touched(tmp_path: Path) -> None:
    """Another process may have written them meanwhile."""
    before, other = undo.look(tmp_path / "a/x"), undo.look(tmp_path / "b/y")
    first_files(tmp_path / "a/x")
    (tmp_path / "b/y").mkdir(parents=True)
    undo.remove_empty(before)
    undo.remove_empty(other)
    assert {path.name for path in (tmp_path / "a/x").iterdir()} == undo.FIRST_FILES
    assert not (tmp_path / "b").exists()
