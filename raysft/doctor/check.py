"""A check of a machine or a cluster: what was found, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

OPEN = "open all TCP ports between the nodes of the cluster: Ray, Gloo and NCCL choose them freely"


@dataclass(frozen=True)
class Check:
    name: str
    status: Literal["pass", "warn", "fail"]
    found: str
    advice: str = ""  # what to do; empty where there is nothing
