"""No process outlives the one that started it, however that ends. Light imports only."""

import ctypes
from contextlib import suppress

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def adopt_orphans() -> None:
    """From now on a process whose parent dies becomes a child of this one, if it descends from it.

    Nothing happens where that is not Linux.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children(timeout_s: float = 5.0) -> None:
    """Kill what is left of them, and theirs, and wait until they are gone."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(children, timeout_s)
