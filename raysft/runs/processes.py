"""No process outlives the one that started it, however that ends; and which of them still run.

Light imports only.
"""

import ctypes
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def adopt_orphans() -> None:
    """From now on a process whose parent dies becomes a child of this one, if it descends from it.

    Nothing happens where that is not Linux.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> frozenset[int]:
    """Pids of what this process has started, or adopted, and still runs."""
    import psutil

    return frozenset(child.pid for child in psutil.Process().children())


def end_children(
    timeout_s: float = 5.0, *, but: str | None = None, spared: Collection[int] = ()
) -> None:
    """Kill what is left of them, and theirs, and wait until they are gone.

    but: those whose name begins so are left alone. spared: pids of children that are left alone,
    with all of theirs.
    """
    import psutil

    killed = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            family = [] if child.pid in spared else [child, *child.children(recursive=True)]
            for one in family:
                with suppress(psutil.Error):
                    if but is None or not one.name().startswith(but):
                        killed.append(one)
                        one.kill()
    psutil.wait_procs(killed, timeout_s)


def pid_space() -> str:
    """Where a pid means the same process: a boot of a kernel, and a pid namespace of it.

    Two containers of one host name differ in it, two hosts too. The host name where there is no
    such /proc.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename


def start_of(pid: int) -> str | None:
    """When a process started, in clock ticks after boot; "" where that cannot be told.

    None where it has ended, as a zombie has.
    """
    with suppress(OSError):
        # After the name, which may hold anything: the state is field 3, the start field 22.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # another user's
        pass
    return ""
