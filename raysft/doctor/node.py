"""What a node tells of itself, and of its way to the others: runs on the node."""

import hashlib
import os
import shutil
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from raysft.runs import provenance

CONNECTS_WITHIN_S = 3.0
GROUP_WITHIN_S = 30.0
SMALL, LARGE = 1_000, 4_000_000  # floats of the all-reduces: 4 KB tell delay, 16 MB bandwidth
ROUNDS = 5


class Node:
    """An actor on one node; its methods are the questions."""

    def __init__(self) -> None:
        self.listener: socket.socket | None = None

    def facts(self, storage: str, hub_ids: list[str]) -> dict[str, Any]:
        """Versions, hardware, room and tools. Sizes in bytes."""
        import psutil
        import ray

        from raysft.runtime.network import interface_of
        from raysft.runtime.ray_private import session_folder

        address = ray.util.get_node_ip_address()
        shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
        return {
            "host": socket.gethostname(),
            "interface": interface_of(address),
            "observed": provenance.observed(),
            "gpus": gpu_names(),
            "memory_free": psutil.virtual_memory().available,
            "shm": shm.total if shm else 0,
            "session_free": shutil.disk_usage(session_folder()).free,
            "storage_free": free_below(Path(storage)),
            "compiler": compiler(),
            "hub": {hub_id: where_is(hub_id) for hub_id in hub_ids},
        }

    def write(self, folder: str, name: str) -> str | None:
        """A file of random bytes: their digest, or None where it cannot be written."""
        content = os.urandom(1 << 16)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        except OSError:
            return None
        return hashlib.sha256(content).hexdigest()

    def read(self, folder: str, name: str) -> str | None:
        """The digest of a file; None where it is not there."""
        try:
            return hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest()
        except OSError:
            return None

    def clean(self, folder: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def free_port(self) -> int:
        with socket.create_server(("", 0)) as server:
            return int(server.getsockname()[1])

    def listen(self) -> int:
        """A port like those that Ray's workers and Gloo take, on which connections are accepted."""
        self.listener = socket.create_server(("", 0))
        threading.Thread(target=accept_all, args=(self.listener,), daemon=True).start()
        return int(self.listener.getsockname()[1])

    def closed(self, address: str, ports: dict[str, int]) -> list[str]:
        """Which of these ports of another node cannot be reached from here."""
        wrong = []
        for name, port in ports.items():
            try:
                socket.create_connection((address, port), timeout=CONNECTS_WITHIN_S).close()
            except OSError:
                wrong.append(f"{name} {port}")
        return wrong

    def all_reduce(self, backend: str, master: str, rank: int, world_size: int) -> dict[str, float]:
        """Seconds that a small and a large one take, as the workers of a run would do it."""
        from datetime import timedelta

        import torch
        import torch.distributed as dist

        from raysft.runtime.network import name_interface

        name_interface()
        device = "cuda" if backend == "nccl" else "cpu"
        dist.init_process_group(
            backend, init_method=f"tcp://{master}", rank=rank, world_size=world_size,
            timeout=timedelta(seconds=GROUP_WITHIN_S),
        )  # fmt: skip
        try:
            return {
                name: timed_all_reduce(torch.ones(size, device=device))
                for name, size in (("small_s", SMALL), ("large_s", LARGE))
            }
        finally:
            dist.destroy_process_group()


def timed_all_reduce(tensor: Any) -> float:
    """The median of ROUNDS, after one to warm up."""
    import torch
    import torch.distributed as dist

    times = []
    for _ in range(ROUNDS + 1):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(tensor)
        if tensor.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times[1:])


def accept_all(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            listener.accept()[0].close()


def gpu_names() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def free_below(folder: Path) -> int:
    """Free bytes where the folder is, or would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def compiler() -> str | None:
    """What compiles DeepSpeed's CPU Adam: torch asks for $CXX or c++, and ninja runs it."""
    path = f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"
    found = shutil.which(os.environ.get("CXX", "c++"), path=path)
    return found if found and shutil.which("ninja", path=path) else None


def where_is(hub_id: str) -> str:
    """`folder`, `cached`, `reachable`, or why it is none of them."""
    if Path(hub_id).is_dir():
        return "folder"
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        if isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
            return "cached"
        HfApi().model_info(hub_id, timeout=10)
    except HFValidationError:
        return "no such folder"
    except Exception as error:  # the library raises a different class for each way to fail
        return f"not reachable ({type(error).__name__})"
    return "reachable"
