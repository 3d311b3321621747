"""Whether a Ray cluster is where RAY_ADDRESS says: Ray itself tries for a quarter of an hour."""

import os
import re
import socket
from contextlib import suppress
from pathlib import Path

from raysft.errors import UserError

WITHIN_S = 5.0
# How a client of gRPC begins: HTTP/2 and an empty SETTINGS frame, which the server answers with its
# own. The type of a frame is its fourth byte.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FRAME_HEADER, SETTINGS = 9, 4
HEAD = "It is the address of a cluster's head, such as HEAD:6379 (`ray status` there prints it)."
ADVICE = (
    f"{HEAD} Unset RAY_ADDRESS to train on this machine by itself, or submit to a cluster with "
    "--address http://HEAD:8265"
)


def require_cluster(address: str) -> None:
    """Raises UserError within seconds where no Ray answers."""
    if address in ("local", ""):  # a Ray of its own
        return
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS is {address}, which is that of a dashboard: submit to it with --address "
            f"{address}, and unset RAY_ADDRESS. {HEAD}"
        )
    place, found = address, ""
    if address == "auto":
        if any_cluster_here():
            return
        place = last_started()
        found = f", which stands for {place}" if place else ""
        if not place:
            raise UserError(f"RAY_ADDRESS is auto, and no Ray runs on this machine. {ADVICE}")
    parts = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d+)", place)
    if parts is None:
        raise UserError(f"RAY_ADDRESS is {address}{found}, which is no address. {ADVICE}")
    told = [answer(host, int(parts[2])) for host in hosts(parts[1])]
    if all(told):
        raise UserError(f"RAY_ADDRESS is {address}{found}, and {told[0]}. {ADVICE}")


def any_cluster_here() -> bool:
    """As Ray looks for one: by the command lines of its processes."""
    import psutil

    lines = (process.info["cmdline"] or () for process in psutil.process_iter(["cmdline"]))
    return any(word.startswith("--gcs-address=") for line in lines for word in line)


def last_started() -> str:
    """The address that `ray start` has left for `auto`, or ""."""
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def hosts(host: str) -> list[str]:
    """Ray takes a loopback address for that of this node."""
    if host not in ("127.0.0.1", "localhost"):
        return [host]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("8.8.8.8", 80))  # sends nothing: it only chooses the way out
        return [host, probe.getsockname()[0]]
    return [host]


def answer(host: str, port: int) -> str | None:
    """What is wrong there; None where it may be a server of gRPC."""
    try:
        with socket.create_connection((host, port), timeout=WITHIN_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return None
            head = first_bytes(connection)
    except (OSError, OverflowError) as error:
        return f"nobody answers there ({getattr(error, 'strerror', None) or error})"
    if not head:
        return f"what answers there has said nothing in {WITHIN_S:.0f} s"
    is_grpc = len(head) == FRAME_HEADER and head[3] == SETTINGS
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
