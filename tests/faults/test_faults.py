"""Each fault ends in the curve of the undisturbed run, or in a clear error and a whole checkpoint.

`make test-faults` writes the table in benchmarks/faults.md.
"""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from raysft.data import demo
from raysft.runs import lock, rundir, snapshot
from raysft.train.checkpoint import layout
from raysft.train.checkpoint.integrity import damage
from tests.faults.conftest import STEPS, Fault, Run, difference, family, stop, wait_for
from tests.faults.nodes import two_nodes

Enter = Callable[[str, str], Fault]


def healed(run: Run, fault: Fault, undisturbed: Run, *, tolerance: float = 0.0) -> str:
    """The run ends by itself as the undisturbed one does; what it said."""
    said = run.end()
    fault.difference = difference(run, undisturbed)
    assert fault.difference <= tolerance
    restarts = run.summary()["restarts"]
    fault.recovery = restarts[0] if restarts else {}
    fault.ended = "healed by itself"
    return said


def resumed(folder: Path, fault: Fault, undisturbed: Run) -> str:
    """The run goes on when it is asked to, and ends as the undisturbed one does."""
    again = Run(folder, resume=True)
    said = again.end()
    fault.difference = difference(again, undisturbed)
    assert fault.difference == 0.0
    fault.ended = "went on with --resume"
    return said


def kill_one(run: Run, fault: Fault, which: int) -> None:
    """Kill a worker, and take the time until the run says so."""
    stop(run.workers()[which])
    killed, log = time.monotonic(), b""
    assert run.process.stderr is not None
    while b"lost" not in log:
        log = run.process.stderr.readline().encode()
        assert log, "the run ended without a word of it"
    fault.noticed_s = time.monotonic() - killed


@pytest.mark.parametrize("seed", range(6))
def test_a_worker_is_killed_at_any_step(
    undisturbed: Run, ledger: Enter, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    step, which = draw.randrange(1, STEPS - 5), draw.randrange(2)
    fault = ledger("worker killed", f"after step {step}, process {which + 1}")
    run = Run(tmp_path)
    run.reach(step)
    kill_one(run, fault, which)
    healed(run, fault, undisturbed)


@pytest.mark.parametrize("seed", range(4))
def test_a_worker_is_killed_during_a_checkpoint(
    undisturbed: Run, ledger: Enter, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(100 + seed)
    after, delay_s, which = draw.choice([5, 25, 45]), draw.uniform(0, 0.08), draw.randrange(2)
    words = f"{1000 * delay_s:.0f} ms into that of step {after + 5}, process {which + 1}"
    fault = ledger("worker killed during a checkpoint", words)
    run = Run(tmp_path)
    run.reach(after)
    workers = run.workers()
    run.reach_checkpoint()
    time.sleep(delay_s)
    stop(workers[which])
    healed(run, fault, undisturbed)
    assert not list((run.folder / rundir.CHECKPOINTS).glob(layout.WRITING + "*"))


@pytest.mark.parametrize("seed", range(3))
def test_a_worker_is_killed_during_an_evaluation(
    undisturbed: Run, ledger: Enter, tmp_path: Path, seed: int
) -> None:
    """Slow enough to be met: one record at a time."""
    draw = random.Random(200 + seed)
    delay_s, which = draw.uniform(0.2, 0.5), draw.randrange(2)
    words = f"{1000 * delay_s:.0f} ms after step 39, process {which + 1}"
    fault = ledger("worker killed during an evaluation", words)
    run = Run(tmp_path)
    run.reach(39)
    time.sleep(delay_s)
    kill_one(run, fault, which)
    healed(run, fault, undisturbed)


@pytest.mark.parametrize("seed", range(3))
def test_a_worker_is_stopped_and_goes_on(
    undisturbed: Run, ledger: Enter, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(300 + seed)
    step, seconds, which = draw.randrange(5, 50), draw.uniform(2, 12), draw.randrange(2)
    fault = ledger("worker held (SIGSTOP)", f"{seconds:.0f} s after step {step}")
    run = Run(tmp_path)
    run.reach(step)
    worker = run.workers()[which]
    worker.suspend()
    time.sleep(seconds)
    worker.resume()
    healed(run, fault, undisturbed)
    assert run.summary()["num_restarts"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_job_is_killed(undisturbed: Run, ledger: Enter, tmp_path: Path, seed: int) -> None:
    step = random.Random(400 + seed).randrange(12, STEPS - 5)
    fault = ledger("job process killed", f"after step {step}")
    run = Run(tmp_path)
    run.reach(step)
    stop(run.job)
    assert "the job ended without a word" in run.end(code=1)
    resumed(tmp_path, fault, undisturbed)


def test_a_run_is_resumed_while_it_trains(undisturbed: Run, ledger: Enter, tmp_path: Path) -> None:
    """And held meanwhile, or it could have ended before it is resumed."""
    fault = ledger("two writers", "--resume after step 25 of a run that goes on")
    run = Run(tmp_path)
    run.reach(25)
    workers = run.workers()
    for worker in workers:
        worker.suspend()
    said = Run(tmp_path, resume=True).end(code=2)
    assert f"is held by process {run.job.pid} on" in said
    for worker in workers:
        worker.resume()
    healed(run, fault, undisturbed)


def test_the_job_and_its_command_are_killed(
    undisturbed: Run, ledger: Enter, tmp_path: Path
) -> None:
    """Nobody gives back the lock of the run, which does not stand in the way."""
    fault = ledger("job process killed", "and its command, after step 25")
    run = Run(tmp_path)
    run.reach(25)
    family = [run.job, *run.job.children(recursive=True)]
    for process in (psutil.Process(run.process.pid), *family):
        stop(process)
    run.process.wait()
    assert (run.folder / lock.FILE).exists()
    assert "for a sign of life" not in resumed(tmp_path, fault, undisturbed)
    assert not (run.folder / lock.FILE).exists()


def test_the_job_is_killed_during_a_checkpoint(
    undisturbed: Run, ledger: Enter, tmp_path: Path
) -> None:
    fault = ledger("job process killed", "while the checkpoint of step 30 is written")
    run = Run(tmp_path)
    run.reach(25)
    job = run.job
    run.reach_checkpoint()
    stop(job)
    run.end(code=1)
    resumed(tmp_path, fault, undisturbed)


@pytest.mark.parametrize("words", ["raylet/raylet", "gcs_server"])
def test_ray_itself_is_killed(undisturbed: Run, ledger: Enter, tmp_path: Path, words: str) -> None:
    fault = ledger("a process of Ray's killed", f"{Path(words).name}, after step 25")
    run = Run(tmp_path)
    run.reach(25)
    stop(family(run.job, words)[0])
    if run.process.wait() == 0:  # the workers need no raylet for the few steps that are left
        healed(run, fault, undisturbed)
        return
    run.end(code=1)
    resumed(tmp_path, fault, undisturbed)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_run_is_interrupted(
    undisturbed: Run, ledger: Enter, tmp_path: Path, signum: signal.Signals
) -> None:
    fault = ledger("interrupted", f"{signum.name} after step 33")
    run = Run(tmp_path)
    run.reach(33)
    run.process.send_signal(signum)
    said = run.end(code=130)
    assert "go on from the newest checkpoint with" in said
    assert max(snapshot.checkpoints_by_step(run.folder)) > 33
    resumed(tmp_path, fault, undisturbed)


def test_a_node_is_lost_and_replaced(undisturbed: Run, ledger: Enter, tmp_path: Path) -> None:
    fault = ledger("node lost", "after step 25, another one comes 5 s later")
    with two_nodes() as cluster:
        run = Run(tmp_path, RAY_ADDRESS=cluster.address)
        run.reach(25)
        cluster.lose()
        time.sleep(5)
        cluster.replace()
        healed(run, fault, undisturbed)


def test_a_node_is_lost_and_comes_back_late(ledger: Enter, tmp_path: Path) -> None:
    """2, 1 and again 2 workers, and the curve of 2."""
    settings = ("run.max_steps=300", "scaling.workers=[1, 2]")
    whole = Run(tmp_path_of(tmp_path, "whole"), "run.max_steps=300")
    whole.end()
    fault = ledger("node lost", "after step 25: 2 to 1 worker, and 2 when it is there again")
    with two_nodes() as cluster:
        run = Run(tmp_path_of(tmp_path, "cut"), *settings, RAY_ADDRESS=cluster.address)
        run.reach(25)
        cluster.lose()
        wait_for(lambda: 0 < run.step() < 25)
        run.reach(40)
        cluster.replace()
        healed(run, fault, whole, tolerance=1e-3)
    restarts = run.summary()["restarts"]
    assert [restart["workers"] for restart in restarts] == [1, 2]


def tmp_path_of(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


@pytest.mark.parametrize("freed", [True, False])
def test_the_disk_fills(
    undisturbed: Run, ledger: Enter, small_disk: Path, tmp_path: Path, freed: bool
) -> None:
    words = "after step 15, room again after step 35" if freed else "after step 15, for good"
    fault = ledger("disk full", words)
    run = Run(tmp_path)
    run.reach(15)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - 4_000_000)))
    if freed:
        run.reach(35)
        filler.unlink()
    said = healed(run, fault, undisturbed)
    assert said.count("no checkpoint at step") == 1
    assert ("room for a checkpoint again" in said) == freed
    kept = snapshot.checkpoints_by_step(run.folder)
    assert max(kept) == (60 if freed else 10)
    assert all(damage(path) is None for path in kept.values())


def test_the_disk_fills_to_the_last_byte(
    undisturbed: Run, ledger: Enter, small_disk: Path, tmp_path: Path
) -> None:
    """Not even a line of metrics can be written. The run goes on when there is room again."""
    fault = ledger("disk full", "after step 25, to the last byte")
    run = Run(tmp_path)
    run.reach(25)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert "the disk is full" in run.end(code=1)
    assert all(damage(path) is None for path in snapshot.checkpoints(run.folder))
    filler.unlink()
    resumed(tmp_path, fault, undisturbed)


@pytest.fixture(scope="session")
def saved(undisturbed: Run) -> list[str]:
    """The files of its newest checkpoint."""
    newest = snapshot.checkpoints(undisturbed.folder)[-1]
    return sorted(str(p.relative_to(newest)) for p in newest.rglob("*") if p.is_file())


FILES = 15  # of a checkpoint of two workers


@pytest.mark.parametrize("number", range(FILES))
def test_a_file_of_the_newest_checkpoint_is_corrupted(
    undisturbed: Run, saved: list[str], ledger: Enter, tmp_path: Path, number: int
) -> None:
    """One bit of it: the run falls back to the checkpoint before."""
    assert len(saved) == FILES, saved
    fault = ledger("checkpoint corrupted", f"one bit of {Path(saved[number]).name}")
    shutil.copytree(undisturbed.folder, tmp_path / "runs/run")
    file = snapshot.checkpoints(tmp_path / "runs/run")[-1] / saved[number]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "is damaged" in resumed(tmp_path, fault, undisturbed)


@pytest.mark.parametrize("kind", ["half of it", "gone"])
def test_the_register_of_checkpoints_is_corrupted(
    undisturbed: Run, ledger: Enter, tmp_path: Path, kind: str
) -> None:
    fault = ledger("checkpoint corrupted", f"the register: {kind}")
    shutil.copytree(undisturbed.folder, tmp_path / "runs/run")
    register = tmp_path / "runs/run" / rundir.CHECKPOINTS / snapshot.FILE
    text = register.read_text()
    register.write_text(text[: len(text) // 2])
    if kind == "gone":
        register.unlink()
    assert "written again from the 2 whole checkpoints" in resumed(tmp_path, fault, undisturbed)
    assert json.loads(register.read_text())


def test_all_checkpoints_are_corrupted(undisturbed: Run, ledger: Enter, tmp_path: Path) -> None:
    fault = ledger("checkpoint corrupted", "all of them")
    shutil.copytree(undisturbed.folder, tmp_path / "runs/run")
    for folder in snapshot.checkpoints(tmp_path / "runs/run"):
        (folder / "manifest_1.json").unlink()
    said = Run(tmp_path, resume=True).end(code=1)
    assert "is whole: 1 of 2 manifests are missing in the oldest of them" in said
    fault.ended = "a clear error"


def test_the_data_is_cut_between_two_runs(ledger: Enter, tmp_path: Path) -> None:
    """It is refused; the same records at another path are not."""
    fault = ledger("data changed", "the file cut to half between SIGINT and --resume")
    records = demo.generate(400)
    demo.train_tokenizer(records).save_pretrained(tmp_path / "tokenizer")
    lines = [json.dumps(record) + "\n" for record in records]
    live, moved = tmp_path / "live.jsonl", tmp_path / "moved.jsonl"
    live.write_text("".join(lines))
    tokenizer = f"model.tokenizer={tmp_path / 'tokenizer'}"
    run = Run(tmp_path, tokenizer, f"data.path={live}")
    run.reach(12)
    run.process.send_signal(signal.SIGINT)
    run.end(code=130)
    live.rename(moved)
    live.write_text("".join(lines[:200]))
    said = Run(tmp_path, tokenizer, f"data.path={live}", resume=True).end(code=2)
    assert "training records: '380 (" in said
    assert "held-out records: '20 (" in said
    fault.ended = "a clear error"
    again = Run(tmp_path, tokenizer, f"data.path={moved}", resume=True)
    again.end()
    assert len(again.curve()) == STEPS + 1
