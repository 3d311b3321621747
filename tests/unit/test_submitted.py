"""Where a run was submitted to, so that --address need not be typed again."""

import json
from pathlib import Path

import pytest

from raysft.carriers import submitted
from raysft.errors import UserError
from tests.conftest import run_raysft

HEAD = "http://localhost:8265"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_newest_of_a_name_counts_and_a_job_has_an_id() -> None:
    submitted.remember("a-1", "a", "http://old:8265")
    submitted.remember("b-1", "b", "http://other:8265")
    submitted.remember("a-2", "a", HEAD)
    assert submitted.find("a", None) == ("a", HEAD)
    assert submitted.find("a-1", None) == ("a-1", "http://old:8265")
    assert submitted.find("a", "http://typed:8265") == ("a", "http://typed:8265")
    with pytest.raises(UserError, match="--address is needed: c was not submitted from here"):
        submitted.find("c", None)


def test_the_record_is_bounded_survives_damage_and_holds_no_password() -> None:
    submitted.record().parent.mkdir(parents=True)
    submitted.record().write_text('\n{broken\n[]\n{"job": "x"}\n')
    submitted.remember("secret-1", "secret", "http://me:password@host:8265")
    assert submitted.recorded("secret") is None
    assert "password" not in submitted.record().read_text()
    for number in range(submitted.KEPT + 5):
        submitted.remember(f"n-{number}", "n", HEAD)
    lines = submitted.record().read_text().splitlines()
    assert len(lines) == submitted.KEPT
    assert json.loads(lines[-1])["job"] == f"n-{submitted.KEPT + 4}"
    assert submitted.recorded("n") == HEAD


def test_a_folder_that_cannot_be_written_is_no_fault(cache: Path) -> None:
    cache.write_text("a file")
    submitted.remember("a-1", "a", HEAD)
    assert submitted.recorded("a") is None


def test_a_runs_folder_knows_where_it_was_submitted_to(tmp_path: Path) -> None:
    run_dir = tmp_path / "shared/there"
    run_dir.mkdir(parents=True)
    spec = {"config": {"run": {"name": "there"}}, "address": HEAD}
    (run_dir / "run.json").write_text(json.dumps(spec))
    assert submitted.find(str(run_dir), None) == ("there", HEAD)
    assert submitted.find(str(run_dir / "run.json"), None) == ("there", HEAD)
    del spec["address"]
    (run_dir / "run.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="was started on a machine, not on a cluster"):
        submitted.find(str(run_dir), None)


@pytest.mark.parametrize("command", ["attach", "stop"])
def test_as_typed(tmp_path: Path, command: str) -> None:
    unknown = run_raysft(command, "there", cwd=tmp_path)
    assert unknown.code == 2
    assert "--address is needed" in unknown.stderr
    submitted.remember("there-1", "there", "http://127.0.0.1:9")
    known = run_raysft(command, "there", cwd=tmp_path)
    assert known.code == 2
    assert "no Ray dashboard answers at http://127.0.0.1:9" in known.stderr
