"""Whether a Ray cluster is where RAY_ADDRESS says: Ray itself tries for a quarter of an hour."""

import os
import re
import socket
from contextlib import suppress

from raysft.errors import UserError

WITHIN_S = 5.0
# How a client of gRPC begins: HTTP/2 and an empty SETTINGS frame, which the server answers with its
# own. The type of a frame is its fourth byte.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FRAME_HEADER, SETTINGS = 9, 4
ADVICE = (
    "It is the address of a cluster's head, such as HEAD:6379 (`ray status` there prints it). "
    "Unset RAY_ADDRESS to train on this machine by itself, or submit to a cluster with --address "
    "http://HEAD:8265"
)


def require_cluster(address: str) -> None:
    """Raises UserError within seconds where no Ray answers. `auto` and the like Ray looks up."""
    place = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d+)", address)
    if place is None:
        return
    told = [answer(host, int(place[2])) for host in hosts(place[1])]
    if all(told):
        raise UserError(f"RAY_ADDRESS is {address}, and {told[0]}. {ADVICE}")


def hosts(host: str) -> list[str]:
    """Ray takes a loopback address for that of this node."""
    if host not in ("127.0.0.1", "localhost"):
        return [host]
    import ray

    return [host, ray.util.get_node_ip_address()]


def answer(host: str, port: int) -> str | None:
    """What is wrong there; None where it may be a server of gRPC."""
    try:
        with socket.create_connection((host, port), timeout=WITHIN_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return None
            head = first_bytes(connection)
    except (OSError, OverflowError) as error:
        return f"nobody answers there ({getattr(error, 'strerror', None) or error})"
    # One that says nothing may want another way to be spoken to, such as TLS: Ray is to find out.
    is_grpc = len(head) < FRAME_HEADER or head[3] == SETTINGS
    return None if is_grpc else "what answers there is no Ray cluster"


def first_bytes(connection: socket.socket) -> bytes:
    head = b""
    connection.sendall(PREFACE)
    with suppress(OSError):
        while len(head) < FRAME_HEADER:
            got = connection.recv(FRAME_HEADER - len(head))
            if not got:
                break
            head += got
    return head
