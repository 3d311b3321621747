"""Peak memory and step times, as measured."""

import ctypes
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysft.data.loader import StepData
from raysft.estimate.shape import Dims, flops

GIB = 2**30
# Of malloc.h, for mallopt().
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
RESERVED_BYTES = 4 << 30


def keep_freed_memory() -> None:
    """Let malloc keep what a step frees for the next one; to be called when one step is done.

    It would give every tensor back to the kernel, and fetch it again page by page: some 750,000
    page faults a step of GPT-2 small, a quarter of its time. Not before the first step, because the
    optimizer's state, which comes at its end and stays, would leave holes that are kept for ever.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallctl"):  # jemalloc, see cluster.worker_environment()
        never = ctypes.c_ssize_t(-1)
        for arena in (0, 1):  # small allocations, large ones
            libc.mallctl(b"arena.%d.purge" % arena, None, None, None, ctypes.c_size_t(0))
            for decay in (b"dirty_decay_ms", b"muzzy_decay_ms"):
                name, size = b"arena.%d.%s" % (arena, decay), ctypes.c_size_t(ctypes.sizeof(never))
                libc.mallctl(name, None, None, ctypes.byref(never), size)
        # Freed but never touched, so it costs nothing: the steps to come fill it from one end, and
        # what they free is one piece again, in which the largest tensors find room.
        libc.malloc.restype = ctypes.c_void_p
        libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(RESERVED_BYTES))))
    elif hasattr(libc, "gnu_get_libc_version"):
        # Less of it, because it fragments: with all blocks kept, GPT-2 Large took 24 GiB.
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def peak_memory_gib(device: torch.device) -> float:
    """CUDA: most bytes allocated by PyTorch. CPU: largest resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB  # Linux counts KiB


def held_memory_gib(device: torch.device) -> float:
    """What is held now, of the same kind as the peak."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / GIB
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / GIB


def memory_kind(device: torch.device) -> str:
    return "cuda_allocated" if device.type == "cuda" else "rss"


def percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


class StepClock:
    """Wall time of each optimizer step of this rank: data, forward, backward and update."""

    def __init__(self) -> None:
        self._started = 0.0
        # Seconds, tokens, supervised tokens, and pairs as in loader.StepData.
        self._steps: list[tuple[float, int, int, int]] = []

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, data: StepData, *, applied: bool) -> float:
        """Seconds since start; kept for the summary unless the update was skipped."""
        seconds = time.perf_counter() - self._started
        if applied:
            self._steps.append((seconds, data.tokens, data.supervised_tokens, data.pairs))
        return seconds

    def summary(self) -> dict[str, float | None]:
        """Over all steps but the first, which pays for allocation and compilation."""
        seconds, tokens, supervised_tokens, _ = self._steady()
        total = sum(seconds)
        return {
            "tokens_per_second": sum(tokens) / total if total else None,
            "supervised_tokens_per_second": sum(supervised_tokens) / total if total else None,
            "step_time_p50_s": percentile(seconds, 50),
            "step_time_p95_s": percentile(seconds, 95),
        }

    def flops_per_second(self, dims: Dims) -> float | None:
        """Of all ranks together, forward and backward, over the same steps."""
        seconds, tokens, supervised_tokens, pairs = map(sum, self._steady())
        done = sum(flops(dims, tokens, pairs, supervised_tokens).values())
        return done / seconds if seconds else None

    def _steady(self) -> tuple[Sequence[Any], ...]:
        """Columns of the steps that count, four of them."""
        steady = self._steps[1:] or self._steps
        return tuple(zip(*steady, strict=True)) if steady else ((), (), (), ())
