"""The workers' process group, over the network interface that Ray knows their node by.

Ray's own TorchConfig does the same but for the interface. Whoever unpickles it imports torch
though, and Ray's controller, which starts before the workers and trains nothing, would spend two
seconds on that. Here torch is imported in the workers alone.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

# Left alone, Gloo takes the address that the host's own name stands for, which on many systems is
# 127.0.1.1, and NCCL the first interface it finds, which may lead to no other node. NCCL takes a
# name for the start of one, but after "=".
VARIABLES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}

TIMEOUT_S = 1800  # of a collective
LEAVE_TIMEOUT_S = 30


def interface_of(address: str) -> str | None:
    """The interface that has this IP address; None where none has."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    for name, addresses in psutil.net_if_addrs().items():
        # An IPv6 address may be followed by its zone, as in fe80::1%eth0.
        if any(a.family in families and a.address.partition("%")[0] == address for a in addresses):
            return str(name)
    return None


def name_interface() -> None:
    """Set it for Gloo and NCCL in this process; what the user has set stays."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        for variable, form in VARIABLES.items():
            os.environ.setdefault(variable, form.format(interface))


def free_address() -> tuple[str, int]:
    """Of this node, and a port that nothing listens at."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as found:
        found.bind(("", 0))
        return address, int(found.getsockname()[1])


def join_group(address: str, port: int, backend: str) -> None:
    """Make the process group, in every worker. address, port: of rank 0."""
    import torch.distributed as dist
    from ray.train import get_context

    name_interface()
    context = get_context()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    dist.init_process_group(backend, init_method="env://", timeout=timedelta(seconds=TIMEOUT_S))


def leave_group() -> None:
    """So that the others need not wait for a process that ends."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()


@contextmanager
def on_own_device() -> Iterator[None]:
    """CUDA means the GPU that Ray gave to this worker, where it gave one."""
    import torch

    if torch.cuda.is_available():
        from ray.train.torch import get_device

        device = get_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
    yield


class ProcessGroup(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True  # NCCL reaches the GPUs of the other workers of a node

    def on_start(self, worker_group: Any, backend_config: "NodeNetwork") -> None:
        address, port = worker_group.execute_single(0, free_address)
        worker_group.execute(join_group, address, port, backend_config.backend)

    def on_shutdown(self, worker_group: Any, backend_config: "NodeNetwork") -> None:  # noqa: ARG002
        with suppress(GetTimeoutError):  # the processes end next
            ray.get(worker_group.execute_async(leave_group), timeout=LEAVE_TIMEOUT_S)


@dataclass
class NodeNetwork(BackendConfig):  # type: ignore[misc]
    backend: str  # "nccl" or "gloo"

    @property
    def backend_cls(self) -> type[ProcessGroup]:
        return ProcessGroup

    @property
    def train_func_context(self) -> Callable[[], AbstractContextManager[None]]:
        return on_own_device

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend}
