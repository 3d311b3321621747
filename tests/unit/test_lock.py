"""One process at a time writes in a run directory, whoever dies when."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier

import pytest

from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.runs import lock, rundir
from raysft.runs.lock import FILE, Holder, held, ignore, take, this_process
from raysft.runs.processes import start_of

HERE = this_process()
DEAD = replace(HERE, pid=2**22 + 1)
ELSEWHERE = replace(HERE, host="elsewhere", pid_space="another boot")


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "STALE_S", 0.5)
    monkeypatch.setattr(lock, "LOOK_S", 0.02)
    monkeypatch.setattr(lock, "BEAT_S", 0.05)


def locked(run_dir: Path, holder: Holder) -> Path:
    file = run_dir / FILE
    file.write_text(json.dumps(asdict(holder)))
    return file


def test_the_second_is_told_who_writes_and_what_to_do(tmp_path: Path) -> None:
    with held(tmp_path / "run", ignore):
        with pytest.raises(UserError) as refused, held(tmp_path / "run", ignore):
            pass
        assert (tmp_path / "run" / FILE).exists()
    said = str(refused.value)
    assert f"by process {os.getpid()} on {HERE.host} since {HERE.since[:10]}" in said
    assert f"`kill -INT {os.getpid()}`" in said
    assert "another --name" in said


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_it_however_a_run_ends(
    error: type[BaseException] | None, tmp_path: Path
) -> None:
    with suppress(ValueError, KeyboardInterrupt), held(tmp_path, ignore):
        if error:
            raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("holder", [DEAD, replace(HERE, started="1")], ids=["gone", "pid reused"])
def test_the_lock_of_a_dead_process_is_taken_at_once(holder: Holder, tmp_path: Path) -> None:
    locked(tmp_path, holder)
    said: list[str] = []
    with held(tmp_path, said.append):
        pass
    assert said == list(tmp_path.iterdir()) == []


def test_a_zombie_has_ended() -> None:
    assert start_of(os.getpid()) == HERE.started
    process = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 10
    while start_of(process.pid) is not None:  # nobody has waited for it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.wait()
    assert start_of(process.pid) is None


def test_without_proc_a_pid_is_all_there_is_to_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_file(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", no_such_file)
    assert start_of(os.getpid()) == ""
    assert start_of(DEAD.pid) is None
    assert not HERE.has_ended
    assert this_process().pid_space == HERE.host


def test_a_sign_of_life_from_another_host_is_heeded(tmp_path: Path) -> None:
    """Its clock is an hour late: only the change counts."""
    file = locked(tmp_path, ELSEWHERE)
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(take, file, ignore)
        hour_ago = time.time() - 3600
        while not taking.done():
            hour_ago += 0.05
            os.utime(file, (hour_ago, hour_ago))
            time.sleep(0.05)
    with pytest.raises(UserError, match="on elsewhere since") as refused:
        taking.result()
    assert "kill" not in str(refused.value)  # here that pid is another process


@pytest.mark.parametrize("content", [json.dumps(asdict(ELSEWHERE)), "", '{"pid": 3}'])
def test_a_lock_that_nobody_touches_is_taken(content: str, tmp_path: Path) -> None:
    """Of another host, container or boot, or one that was cut short by a full disk."""
    (tmp_path / FILE).write_text(content)
    said: list[str] = []
    with held(tmp_path, said.append):
        assert len(said) == 1
        assert "for a sign of life" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_given_back_while_one_waits_is_taken(tmp_path: Path) -> None:
    file = locked(tmp_path, ELSEWHERE)
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(take, file, lambda _: file.unlink())
    assert json.loads(taking.result())["pid"] == os.getpid()


@pytest.mark.parametrize("holder", [None, DEAD], ids=["free", "of a dead process"])
def test_of_many_at_once_one_takes_it(holder: Holder | None, tmp_path: Path) -> None:
    many, rounds = 8, 10
    start = Barrier(many)

    def attempt(folder: Path) -> bool:
        start.wait()
        try:
            take(folder / FILE, ignore)
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(many) as pool:
        for number in range(rounds):
            folder = tmp_path / str(number)
            folder.mkdir()
            if holder is not None:
                locked(folder, holder)
            assert sum(pool.map(attempt, [folder] * many)) == 1
            assert [path.name for path in folder.iterdir()] == [FILE]


def test_a_claim_of_a_process_that_died_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "CLAIM_S", 0.05)
    file = locked(tmp_path, DEAD)
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(Path, "replace", interrupt)
        take(file, ignore)
    (claim,) = set(tmp_path.iterdir()) - {file}
    with pytest.raises(UserError, match="Remove that file") as refused:
        take(file, ignore)
    assert str(claim) in str(refused.value)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_holder_gives_signs_of_life_and_notices_its_loss(tmp_path: Path) -> None:
    lost: list[str] = []
    with held(tmp_path, ignore, lost=lost.append):
        file = tmp_path / FILE
        os.utime(file, (0, 0))
        wait_for(lambda: file.stat().st_mtime > 0)
        assert lost == []
        locked(tmp_path, ELSEWHERE)
        wait_for(lambda: lost != [])
    assert "is now held by process" in lost[0]
    assert json.loads(file.read_text())["host"] == "elsewhere"  # not ours to remove


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def child(tmp_path: Path) -> list[str]:
    """A command whose process tries to hold the folder; whether as an heir is its argument."""
    code = (
        "import sys, pathlib\nfrom raysft.runs.lock import held, ignore\n"
        "with held(pathlib.Path(sys.argv[1]), ignore, inherits=sys.argv[2] == 'heir'): pass\n"
    )
    return [sys.executable, "-c", code, str(tmp_path)]


def test_a_job_takes_the_lock_of_its_command(child: list[str], tmp_path: Path) -> None:
    with held(tmp_path, ignore):
        stranger = subprocess.run([*child, "stranger"], capture_output=True, text=True)
        assert "UserError" in stranger.stderr
        assert (tmp_path / FILE).exists()
        subprocess.run([*child, "heir"], check=True)
        assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("resume", "told"),
    [(False, "is held by process 1 on"), (True, "there is no")],
    ids=["held", "nothing to resume"],
)
def test_a_job_that_has_travelled_is_refused_in_its_last_event(
    resume: bool, told: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs/x"
    if not resume:
        run_dir.mkdir(parents=True)
        locked(run_dir, replace(HERE, pid=1, started=start_of(1) or ""))
    spec = {
        "verb": "train", "run_dir": str(run_dir), "resume": resume, "stamp": {"version": "1"},
        "config": load_config("gpt2-tiny-cpu").model_dump(mode="json"),
    }  # fmt: skip
    rundir.write_json(tmp_path / "run.json", spec)
    command = [sys.executable, "-m", "raysft.job", str(tmp_path / "run.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    end = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, end["event"], end["exit_code"]) == (2, "end", 2)
    assert told in end["summary"]["error"]
    assert not (run_dir / rundir.RUN).exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"run.storage: .*file/run cannot be written"),
        held(tmp_path / "file/run", ignore),
    ):
        pass
