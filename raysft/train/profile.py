"""Where the time of some steps went: a trace, and a table that sums to all of it.

Each second counts once, in the innermost phase that is open. On a GPU the device is waited for at
every border, which is why nothing is timed unless asked for.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

T = TypeVar("T")
END = object()  # of what an iterator gives
PHASES = (
    "data",
    "forward",
    "backward",
    "communication",
    "optimizer",
    "evaluation",
    "checkpoint",
    "other",
)
COLLECTIVES = ("all_gather", "all_reduce", "all_to_all", "broadcast", "reduce", "barrier")


class Profile:
    """Times the phases of `num_steps` steps on this rank."""

    def __init__(self, num_steps: int, folder: Path, device: torch.device) -> None:
        self.num_steps = num_steps
        self.folder = folder
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.open = ["other"]
        self.since = 0.0
        self.step = 0
        self.tracer = torch.profiler.profile()

    def step_ends(self) -> list[dict[str, Any]] | None:
        """To be called after every step; the rows of the table after the last one.

        Begins after the first step, which pays for allocation and compilation.
        """
        global _active
        if self.num_steps == 0:
            return None
        self.step += 1
        if self.step == 1:
            _active = self
            self.tracer.start()
            self.since = time.perf_counter()
        if self.step != self.num_steps + 1:
            return None
        self.enter("other")
        _active = None
        self.tracer.stop()
        self.folder.mkdir(exist_ok=True)
        self.tracer.export_chrome_trace(str(self.folder / "trace.json"))
        total = sum(self.seconds.values())
        return [
            {"phase": name, "seconds": seconds, "share": seconds / total}
            for name, seconds in self.seconds.items()
        ]

    def enter(self, phase: str) -> None:
        """Charge the time since the last border to the phase that was open."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self.open[-1]] += now - self.since
        self.since = now
        self.open.append(phase)

    def leave(self) -> None:
        self.enter("")
        del self.open[-2:]


_active: Profile | None = None


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Marks a part of the step; costs nothing while no profile is taken."""
    profile = _active
    if profile is None:
        yield
        return
    profile.enter(name)
    try:
        with torch.profiler.record_function(f"raysft {name}"):
            yield
    finally:
        profile.leave()


def waiting_for(name: str, items: Iterable[T]) -> Iterator[T]:
    """The same items; what it takes until each is there counts to the phase."""
    rest = iter(items)
    while True:
        with phase(name):
            item = next(rest, END)
        if item is END:
            return
        yield cast(T, item)


def watch_communication() -> None:
    """Let DeepSpeed's collectives count as communication, and so what waits for them."""
    from deepspeed.comm import comm

    for name in dir(comm.cdb):
        if name.startswith(COLLECTIVES) and callable(getattr(comm.cdb, name)):
            with suppress(AttributeError):
                setattr(comm.cdb, name, timed(getattr(comm.cdb, name)))


def timed(collective: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        with phase("communication"):
            handle = collective(*args, **options)
        return Waiting(handle) if hasattr(handle, "wait") else handle

    return call


class Waiting:
    """The handle of a running collective, whose waiting is timed."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def wait(self, *args: Any) -> Any:
        with phase("communication"):
            return self.handle.wait(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.handle, name)
