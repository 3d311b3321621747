"""A Ray cluster of two hosts and a client on a third, by cluster/two-host.sh."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Outcome, run_command

SCRIPT = Path(__file__).parents[2] / "cluster" / "two-host.sh"
BIN = Path(sys.executable).parent
STATE = Path("/tmp/raysft-two-host")
URL = "http://10.77.0.1:8265"
NODE = "10.77.0.2"


def run(*args: str | Path, timeout: float = 300, cwd: Path = Path("/"), **env: str) -> Outcome:
    return run_command([SCRIPT, *args], cwd, environment() | env, timeout)


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}


class Hosts:
    """Commands on the hosts; each of them fails the test unless it is told what to expect."""

    def do(self, *args: str) -> str:
        outcome = run(*args)
        assert outcome.code == 0, outcome.stderr
        return outcome.stdout

    def raysft(self, *args: str | Path, cwd: Path, **env: str) -> Outcome:
        """The command line on the third host, in a network of its own."""
        return run("client", BIN / "raysft", *args, cwd=cwd, **env)

    def start(self, *args: str | Path, cwd: Path, log: Path) -> subprocess.Popen[bytes]:
        """The same, beside the test."""
        with log.open("wb") as out:
            return subprocess.Popen(
                [SCRIPT, "client", BIN / "raysft", *map(str, args)],
                cwd=cwd,
                env=environment(),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def without_token(self, *args: str | Path, cwd: Path, **env: str) -> Outcome:
        """On the third host, as who does not know the cluster's token."""
        clean = {k: v for k, v in environment().items() if not k.startswith("RAY_AUTH")}
        command = ["ip", "netns", "exec", "raysft-client", BIN / "raysft", *map(str, args)]
        clean |= {"HOME": str(cwd)} | env
        return run_command(command, cwd, clean, timeout=300)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Skips the test where namespaces are not allowed, or tools are missing."""
    missing = [tool for tool in ("ip", "tc", "iptables", "nsenter") if not shutil.which(tool)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"hosts need root and {', '.join(missing) or 'nothing else'}")
    up = run("up")
    try:
        assert up.code == 0, up.stderr
        if run("hosts").stdout.strip() != "namespaces":
            pytest.skip("network namespaces are not allowed here")
        yield Hosts()
    finally:
        run("down")
