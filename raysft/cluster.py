"""The Ray cluster this process works on: the one it was submitted to, or one embedded in it."""

import logging
import os
import sys
from typing import Any

EMBEDDED = "RAY_ADDRESS" not in os.environ  # `ray job submit` sets it for the jobs of a cluster


def local_resources() -> dict[str, float]:
    """What an embedded Ray will offer, known without starting it."""
    import torch

    return {"CPU": len(os.sched_getaffinity(0)), "GPU": torch.cuda.device_count()}


def start_ray() -> None:
    """Join the cluster this job was submitted to, or start one inside this process, once."""
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if EMBEDDED:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {
            "address": "local",
            # Ray Train asks the dashboard's API for its actors, and logs every second without it.
            "include_dashboard": True,
            "num_cpus": local_resources()["CPU"],
        }
    ray.init(**options)


def shut_down_ray() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
