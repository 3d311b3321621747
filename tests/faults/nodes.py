"""A Ray cluster of two nodes on this machine, whose second one can be lost and come back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# As cluster/README.md advises: a lost node is noticed after 3 s instead of 13.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
NODE = {"num_cpus": 1, "object_store_memory": 200_000_000}


class Cluster:
    """One CPU on each node: room for one worker."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        os.environ.update(HEALTH)
        head = {**NODE, "include_dashboard": False}
        self.cluster = RayCluster(initialize_head=True, head_node_args=head)
        self.second: Any = self.cluster.add_node(**NODE)
        self.address = str(self.cluster.address)

    def lose(self) -> None:
        """Kill all processes of the second node."""
        self.cluster.remove_node(self.second, allow_graceful=False)

    def replace(self) -> None:
        self.second = self.cluster.add_node(**NODE)


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    before = dict(os.environ)
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
