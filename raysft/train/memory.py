"""The memory of a worker: kept from one step for the next, and measured."""

import ctypes
import resource
from pathlib import Path

import torch

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
    if hasattr(libc, "mallctl"):  # jemalloc, see connect.worker_environment()
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


def reserved_memory_gib(device: torch.device) -> float:
    """CUDA: with what PyTorch's allocator kept for later. A CPU's resident set is all of it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / GIB
    return peak_memory_gib(device)


def held_memory_gib(device: torch.device) -> float:
    """What is held now, of the same kind as the peak."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / GIB
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / GIB


def memory_kind(device: torch.device) -> str:
    return "cuda_allocated" if device.type == "cuda" else "rss"
