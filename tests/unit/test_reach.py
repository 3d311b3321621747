"""A RAY_ADDRESS without a cluster is told within seconds."""

import socket
from collections.abc import Iterator
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


@pytest.mark.parametrize("server", [SETTINGS_FRAME], indirect=True)
def test_a_server_of_grpc_there(server: int) -> None:
    require_cluster(f"127.0.0.1:{server}")


def test_what_ray_looks_up_itself() -> None:
    require_cluster("auto")
