"""Real runs that faults are injected into, and a ledger of what became of each fault."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from raysft.runs import rundir
from raysft.train.checkpoint import layout
from tests.ray.hosts import SCRIPT, URL, environment

STEPS = 60
# The demo in brief, every step logged, a checkpoint every 10 steps, an evaluation every 20.
SETTINGS = (
    f"run.max_steps={STEPS}", "run.samples=0", "eval.exact_match_records=0", "log.every_steps=1",
    "log.tensorboard=false", "checkpoint.every_steps=10", "eval.every_steps=20",
)  # fmt: skip


def wait_for(condition: Callable[[], bool], timeout_s: float = 120, every_s: float = 0.05) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(every_s)


def family(job: psutil.Process, words: str) -> list[psutil.Process]:
    """The processes of a job whose command line holds some words, oldest first."""
    found = []
    for process in job.children(recursive=True):
        with suppress(psutil.Error):  # it ends while we look
            if words in " ".join(process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


class Run:
    """A verb in a folder of its own; on the two hosts of tests/ray/hosts.py if told so."""

    def __init__(
        self,
        folder: Path,
        *settings: str,
        verb: str = "train",
        resume: bool = False,
        on_hosts: bool = False,
        **env: str,
    ) -> None:
        self.folder = folder / "runs/run"
        sets = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
        command = [str(Path(sys.executable).parent / "raysft"), verb, "gpt2-tiny-cpu"]
        command += ["--name", "run", *(["--resume"] if resume else []), *sets]
        if on_hosts:
            there = ["--address", URL, "--set", f"run.storage={folder / 'runs'}"]
            command = [str(SCRIPT), "client", *command, *there]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment() | env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def job(self) -> psutil.Process:
        return psutil.Process(self.process.pid).children()[0]

    def workers(self) -> list[psutil.Process]:
        return family(self.job, "RayTrainWorker")

    def step(self) -> int:
        """The last one that metrics.jsonl tells of; -1 before it."""
        with suppress(OSError, IndexError, ValueError):
            text = (self.folder / rundir.METRICS).read_text()
            return int(json.loads(text.splitlines()[-1])["step"])
        return -1

    def reach(self, step: int) -> None:
        wait_for(lambda: self.step() >= step or self.process.poll() is not None, every_s=0.01)
        assert self.process.poll() is None, self.process.communicate()[1]

    def reach_checkpoint(self) -> None:
        """The moment at which the files of one are being written."""
        written = self.folder / rundir.CHECKPOINTS

        def begun() -> bool:
            return any(written.glob(layout.WRITING + "*"))

        wait_for(lambda: begun() or self.process.poll() is not None, every_s=0.001)
        assert self.process.poll() is None, self.process.communicate()[1]

    def end(self, code: int = 0) -> str:
        """What it said, once it has ended with the exit code expected."""
        _, said = self.process.communicate(timeout=300)
        assert self.process.returncode == code, said
        assert "Traceback" not in said.partition("job.log ends:")[0]
        return said

    def summary(self) -> dict[str, Any]:
        return rundir.read_json(self.folder / rundir.SUMMARY)

    def curve(self) -> list[tuple[Any, ...]]:
        """Everything a step computed; each step once, in order."""
        lines = (self.folder / rundir.METRICS).read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows] == list(range(len(rows)))
        return [(row.get("loss"), row.get("grad_norm"), row.get("eval_loss")) for row in rows]


def difference(run: Run, other: Run) -> float:
    """The largest one between any two numbers of their curves."""
    found, wanted = run.curve(), other.curve()
    assert len(found) == len(wanted)
    pairs = [(x, y) for a, b in zip(found, wanted, strict=True) for x, y in zip(a, b, strict=True)]
    assert all((x is None) == (y is None) for x, y in pairs)
    return max(abs(x - y) for x, y in pairs if x is not None)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("undisturbed"))
    run.end()
    return run


def stop(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)


@dataclass
class Fault:
    """A row of the ledger."""

    kind: str
    where: str  # which process and when, or which file
    ended: str = "lost"  # healed by itself; went on with --resume; a clear error
    difference: float | None = None  # of the curve to the undisturbed run's
    noticed_s: float | None = None  # from the fault to the run's word about it
    recovery: dict[str, Any] = field(default_factory=dict)  # see raysft.runtime.restarts


LEDGER = pytest.StashKey[list[Fault]]()


@pytest.fixture
def ledger(request: pytest.FixtureRequest) -> Callable[[str, str], Fault]:
    """Enters a fault before it is injected: one that a run does not survive stays "lost"."""
    faults = request.config.stash.setdefault(LEDGER, [])

    def enter(kind: str, where: str) -> Fault:
        faults.append(Fault(kind, where))
        return faults[-1]

    return enter


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ledger", help="a Markdown file for the table of faults")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--ledger", None) and config.getoption("numprocesses", None):
        raise pytest.UsageError("--ledger is written by one process: add -n 0")


def pytest_sessionfinish(session: pytest.Session) -> None:
    faults, path = session.config.stash.get(LEDGER, []), session.config.getoption("--ledger")
    if path and faults:
        from tests.faults.table import report

        Path(path).write_text(report(faults))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB, where mounting is allowed."""
    disk = tmp_path / "runs"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
