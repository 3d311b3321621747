"""The nodes of the Ray cluster that this process is connected to, and what they answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysft.config.schema import Config
from raysft.doctor.node import Node

ANSWERS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Member:
    """A node of the cluster, and the actor that answers for it."""

    address: str
    ports: dict[str, int]  # Ray's own
    resources: Mapping[str, float]
    actor: Any

    def ask(self, question: str, *args: Any) -> Any:
        return getattr(self.actor, question).remote(*args)


def members(config: Config) -> list[Member]:
    """The living nodes, that of this process first."""
    here = ray.get_runtime_context().get_node_id()
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"]))
    result = []
    for node in alive:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        gpus = 1 if config.on_gpu and node["Resources"].get("GPU") else 0
        actor = ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy=there)(Node).remote()
        ports = {"raylet": node["NodeManagerPort"], "object manager": node["ObjectManagerPort"]}
        result.append(Member(node["NodeManagerAddress"], ports, node["Resources"], actor))
    return result


def answers(asked: Mapping[str, Any], within_s: float = ANSWERS_WITHIN_S) -> dict[str, Any]:
    """By address, what has come in time: an answer, or the exception that was raised instead."""
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=within_s)
    result: dict[str, Any] = {}
    for address, reference in asked.items():
        try:
            result[address] = ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError:
            continue
        except Exception as error:
            result[address] = error
    return result
