"""The network interface that workers talk through: the one Ray knows their node by."""

import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig

from raysft.runtime.ray_private import TorchBackend

# Left alone, Gloo takes the address that the host's own name stands for, which on many systems is
# 127.0.1.1, and NCCL the first interface it finds, which may lead to no other node. NCCL takes a
# name for the start of one, but after "=".
VARIABLES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}


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


class NamedInterface(TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class NodeNetwork(TorchConfig):  # type: ignore[misc]
    """Ray's, whose workers know the interface before they make their process group."""

    @property
    def backend_cls(self) -> type[NamedInterface]:
        return NamedInterface
