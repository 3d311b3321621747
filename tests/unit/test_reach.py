"""A RAY_ADDRESS without a cluster is told within seconds."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from raysft.errors import UserError
from raysft.runtime.reach import require_cluster

SETTINGS_FRAME = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0])


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of one that says these bytes to whoever comes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(99)
                connection.sendall(request.param)

        Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for scheme in ("", "ray://"):
        address = f"{scheme}127.0.0.1:{port}"
        with pytest.raises(UserError, match=f"RAY_ADDRESS is {address}, and nobody answers there"):
            require_cluster(address)


@pytest.mark.parametrize("server", [b"HTTP/1.1 400 Bad Request\r\n"], indirect=True)
def test_another_server_there(server: int) -> None:
    with pytest.raises(UserError, match=rf"RAY_ADDRESS is 127\.0\.0\.1:{server}"):
        require_cluster(f"127.0.0.1:{server}")


def test_a_server_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysft.runtime.reach.WITHIN_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(UserError, match="has said nothing"):
            require_cluster(f"127.0.0.1:{port}")


@pytest.mark.parametrize("server", [SETTINGS_FRAME], indirect=True)
def test_a_server_of_grpc_there(server: int) -> None:
    require_cluster(f"127.0.0.1:{server}")


def test_a_ray_of_its_own() -> None:
    require_cluster("local")


def test_the_address_of_a_dashboard() -> None:
    with pytest.raises(
        UserError, match="that of a dashboard: submit to it with --address http://h"
    ):
        require_cluster("http://h:8265")


def test_no_address() -> None:
    with pytest.raises(UserError, match="RAY_ADDRESS is cluster, which is no address"):
        require_cluster("cluster")


def test_auto_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would try for a quarter of an hour where a cluster that is gone has left its address."""
    monkeypatch.setattr("raysft.runtime.reach.any_cluster_here", lambda: False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(UserError, match="RAY_ADDRESS is auto, and no Ray runs on this machine"):
        require_cluster("auto")
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "ray/ray_current_cluster").write_text(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=f"auto, which stands for 127.0.0.1:{port}, and nobody"):
        require_cluster("auto")


def test_auto_finds_ray_by_its_processes() -> None:
    """One that has the command line of Ray's stands for it."""
    wait = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", wait, "--gcs-address=127.0.0.1:1"]) as process:
        require_cluster("auto")
        process.kill()
