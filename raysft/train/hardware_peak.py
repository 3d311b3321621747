"""What the device can do at most, measured: the denominator of MFU and of memory bandwidth."""

import time
from collections.abc import Callable
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from raysft.model.cpu_bf16 import widen

SECONDS = 0.3  # of each test
MIB = 2**20


@cache  # workers that train several models in turn measure it once
def measure_peak(device: torch.device, dtype: torch.dtype) -> dict[str, float] | None:
    """FLOPs and copied bytes a second of all ranks together, each measured at the same time.

    Products of square matrices in the type that training multiplies in, and copies of a tensor that
    no cache holds, of which a byte read and a byte written count as two. The best of all tries: it
    is a bound. Every rank must call it. None where a device has no memory left for it.
    """
    size = 8192 if device.type == "cuda" else 2048
    copied_bytes = (1024 if device.type == "cuda" else 128) * MIB
    room = torch.ones((), device=device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        room = room * (torch.cuda.mem_get_info(device)[0] > 4 * copied_bytes)
    dist.all_reduce(room, op=dist.ReduceOp.MIN)
    if not room:
        return None
    a, b = (widen(torch.randn(size, size, device=device, dtype=dtype)) for _ in range(2))
    source = torch.ones(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product_s = best_seconds(lambda: a @ b, device)
    dist.barrier()
    copy_s = best_seconds(lambda: target.copy_(source), device)
    rates = torch.tensor(
        [2 * size**3 / product_s, 2 * len(source) / copy_s], dtype=torch.float64, device=device
    )
    dist.all_reduce(rates)
    flops, copied = rates.tolist()
    return {"flops_per_second": flops, "copied_bytes_per_second": copied}


def best_seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """The least time of one call, over SECONDS of calls."""
    best, end = float("inf"), time.perf_counter() + SECONDS
    work()
    while time.perf_counter() < end or best == float("inf"):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
