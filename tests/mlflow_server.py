"""A server of MLflow on loopback, in a Python environment of its own: the whole package needs other
versions of what raysft needs."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

STARTS_WITHIN_S = 120.0
# The client's package contains the server, and lacks these, which the server imports. The whole
# package would bring scipy, scikit-learn, pyarrow and more: 851 MB, and four minutes.
SERVER_IMPORTS = [
    "aiohttp",
    "alembic",
    "cryptography",
    "flask",
    "flask-cors",
    "graphene",
    "gunicorn",
    "huey",
    "pandas",
    "sqlalchemy",
]
KEPT = "raysft-tests"  # in the user's cache, from one session of tests to the next


def installed(cache: Path) -> Path:
    """The program, of the version of the client. Skips the test where it cannot be installed."""
    wanted = f"mlflow-skinny=={version('mlflow-skinny')}"
    folder = (cache / KEPT).resolve() / wanted
    program, ready = folder / "bin/mlflow", folder / "ready"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if ready.exists():
            return program
        for command in (
            [sys.executable, "-m", "venv", "--clear", folder],
            [folder / "bin/pip", "install", "--quiet", wanted, *SERVER_IMPORTS],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=1000)
            if done.returncode:
                pytest.skip(f"{wanted} cannot be installed: {done.stderr[-500:]}")
        ready.touch()
    return program


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(program: Path, folder: Path, port: int) -> Iterator[str]:
    """Its address, while it serves what it keeps in `folder`."""
    folder.mkdir(exist_ok=True)
    keeps = ["--backend-store-uri", f"sqlite:///{folder}/db"]
    keeps += ["--artifacts-destination", str(folder / "artifacts")]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [program, "server", *keeps, *where],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONPATH": ""},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for_health(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            one.kill()
        psutil.wait_procs(family[1:], 10)
        process.wait()


def wait_for_health(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"no MLflow serves: {log.read_text()[-2000:]}")
