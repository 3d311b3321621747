"""The device that a worker will have, asked before there is a worker."""

from typing import NamedTuple

from raysft.config.schema import Config
from raysft.estimate.report import machine_gib


class DeviceThere(NamedTuple):
    name: str
    memory_gib: float


def device_there(config: Config) -> DeviceThere:
    """Ray must be there. On a GPU a task looks, in a process of its own: a CUDA context in this one
    would stay, and hold half a GiB."""
    import ray

    if not config.on_gpu:
        return DeviceThere("CPU", machine_gib() / config.scaling.most)
    look = ray.remote(num_cpus=0, num_gpus=config.scaling.gpus_per_worker, max_calls=1)(look_at_gpu)
    name, memory_bytes = ray.get(look.remote())
    return DeviceThere(name, memory_bytes / 2**30)


def look_at_gpu() -> tuple[str, int]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return properties.name, properties.total_memory
