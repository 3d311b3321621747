"""Compiling DeepSpeed's CPU Adam, which many processes want and one of them does."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raysft.train.optimizer import compiling

OURS = """
import time
from raysft.train.optimizer import compiling
with compiling("x"):
    open({folder!r} + "/x/lock", "x").close()  # as torch does
    print("compiling", flush=True)
    time.sleep(60)
"""
THEIRS = """
import os, time
descriptor = os.open({folder!r} + "/x/lock", os.O_CREAT | os.O_EXCL)
print("compiling", flush=True)
time.sleep(2)
os.remove({folder!r} + "/x/lock")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "x").mkdir()
    return tmp_path


@contextmanager
def another(code: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that compiles."""
    words = [sys.executable, "-c", code.format(folder=str(folder))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "compiling\n"
        yield process
        process.kill()


def test_the_lock_of_a_killed_process_is_no_hindrance(folder: Path) -> None:
    with another(OURS, folder) as killed:
        killed.kill()
        killed.wait()
        assert (folder / "x/lock").exists()
        with compiling("x"):
            assert not (folder / "x/lock").exists()


def test_who_compiles_is_waited_for(folder: Path) -> None:
    with another(THEIRS, folder) as other, compiling("x"):
        assert other.wait(5) == 0
    with another(OURS, folder) as other:
        started = time.monotonic()
        with subprocess.Popen(["bash", "-c", f"sleep 1; kill -9 {other.pid}"]), compiling("x"):
            assert time.monotonic() - started > 1
            assert other.wait(5) == -9
