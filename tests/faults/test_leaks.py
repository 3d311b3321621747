"""However a run ends, nothing is left of it but its run directory."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from raysft.runs import lock, rundir
from raysft.train.checkpoint import layout
from tests.faults.conftest import Run, family, stop, wait_for

MARK = "RAYSFT_TEST_RUN"  # in the environment of a run, and so of all that it starts


class Place:
    """Where a run is watched: its processes by a mark, its temporary folder, shared memory."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.mark = uuid.uuid4().hex
        self.temporary = Path(tempfile.mkdtemp(prefix="t"))  # short: Ray's sockets lie under it
        self.shared = set(os.listdir("/dev/shm"))
        self.env = {MARK: self.mark, "TMPDIR": str(self.temporary)}

    def run(self, *settings: str) -> Run:
        return Run(self.folder, *settings, **self.env)

    def command(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(Path(sys.executable).parent / "raysft"), *words],
            cwd=self.folder,
            env=os.environ | self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[str]:
        wanted, found = f"{MARK}={self.mark}".encode(), []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                if wanted in Path(f"/proc/{process.pid}/environ").read_bytes():
                    found.append(" ".join(process.cmdline())[:100])
        return found

    def left(self) -> list[str]:
        shared = [name for name in os.listdir("/dev/shm") if name not in self.shared]
        unfinished = list((self.folder / "runs").glob(f"*/checkpoints/{layout.WRITING}*"))
        unfinished += (self.folder / "runs").glob(f"*/{lock.FILE}*")
        temporary = [str(path) for path in self.temporary.rglob("*")]
        return self.processes() + shared + temporary + [str(path) for path in unfinished]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    shutil.rmtree(found.temporary, ignore_errors=True)


def done(place: Place) -> None:
    place.run("run.max_steps=3").end()


def refused_config(place: Place) -> None:
    place.run("optim.lr=fast").end(code=2)


def refused_data(place: Place) -> None:
    """Told while Ray starts."""
    place.run("data.path=none.json", "model.tokenizer=./none").end(code=2)


def signalled(words: str, *signums: signal.Signals, wait_s: float = 0.0) -> Callable[..., None]:
    """Interrupted when it says something."""

    def end(place: Place) -> None:
        run = place.run("run.max_steps=2000")
        assert run.process.stderr is not None
        while words not in (line := run.process.stderr.readline()):
            assert line
        for signum in signums:
            time.sleep(wait_s)
            run.process.send_signal(signum)
        run.end(code=130)

    return end


def signalled_in_a_checkpoint(place: Place) -> None:
    run = place.run("run.max_steps=2000")
    run.reach(5)
    run.reach_checkpoint()
    run.process.send_signal(signal.SIGTERM)
    run.end(code=130)


def job_killed(when: Callable[[Run], None]) -> Callable[[Place], None]:
    def end(place: Place) -> None:
        run = place.run("run.max_steps=2000")
        when(run)
        stop(run.job)
        run.end(code=1)

    return end


def while_ray_starts(run: Run) -> None:
    def started() -> bool:
        return bool(family(psutil.Process(run.process.pid), "gcs_server"))

    wait_for(started)


def command_killed(place: Place) -> None:
    """The job meets a closed pipe, and ends."""
    run = place.run("run.max_steps=2000")
    run.reach(5)
    run.process.kill()
    run.process.wait()


def worker_killed(*settings: str, code: int) -> Callable[[Place], None]:
    def end(place: Place) -> None:
        run = place.run(*settings)
        run.reach(12)
        stop(run.workers()[0])
        run.end(code=code)

    return end


def ray_killed(words: str) -> Callable[[Place], None]:
    def end(place: Place) -> None:
        run = place.run("run.max_steps=2000")
        run.reach(5)
        stop(family(run.job, words)[0])
        run.end(code=1)

    return end


def not_finite(place: Place) -> None:
    settings = ("optim.lr=1e30", "optim.max_grad_norm=0.0", "schedule.warmup_steps=0")
    place.run(*settings, "checkpoint.every_steps=0").end(code=1)


def search_interrupted(place: Place) -> None:
    process = place.command("tune", "tune-stability", "--name", "run")
    wait_for(lambda: (place.folder / "runs/run" / rundir.RESULTS).exists())
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130


def benchmark(place: Place) -> None:
    settings = ("bench.seq_lens=[48]", "bench.steps=1", "bench.warmup_steps=1")
    sets = [word for setting in settings for word in ("--set", setting)]
    process = place.command("bench", "seq-len", "gpt2-tiny-cpu", "--name", "run", *sets)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


WAYS: dict[str, Callable[[Place], None]] = {
    "done": done,
    "a setting is refused": refused_config,
    "the data is refused": refused_data,
    "SIGINT while Ray starts": signalled("starting Ray", signal.SIGINT, wait_s=1.5),
    "SIGTERM while workers start": signalled("starting workers", signal.SIGTERM, wait_s=1.0),
    "SIGINT while it trains": signalled("grad norm", signal.SIGINT, wait_s=2.0),
    "SIGTERM while it trains": signalled("grad norm", signal.SIGTERM, wait_s=2.0),
    "SIGINT twice": signalled("grad norm", *[signal.SIGINT] * 2, wait_s=0.05),
    "SIGINT three times": signalled("grad norm", *[signal.SIGINT] * 3, wait_s=0.05),
    "SIGTERM in a checkpoint": signalled_in_a_checkpoint,
    "the job is killed while Ray starts": job_killed(while_ray_starts),
    "the job is killed while it trains": job_killed(lambda run: run.reach(5)),
    "the job is killed in a checkpoint": job_killed(Run.reach_checkpoint),
    "the command is killed": command_killed,
    "a worker is killed, and replaced": worker_killed(code=0),
    "a worker is killed, and that is all": worker_killed("scaling.max_failures=0", code=1),
    "the raylet is killed": ray_killed("raylet/raylet"),
    "the GCS is killed": ray_killed("gcs_server"),
    "the loss is no number": not_finite,
    "a search is interrupted": search_interrupted,
    "a benchmark is done": benchmark,
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left(place: Place, way: str) -> None:
    """No process, no shared memory, no temporary folder, no unfinished checkpoint."""
    WAYS[way](place)
    with suppress(AssertionError):  # a job whose command was killed has yet to meet that
        wait_for(lambda: not place.left(), timeout_s=30 if way == "the command is killed" else 2)
    assert place.left() == []
