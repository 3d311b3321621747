"""What runs between the driver and its workers: events one way, its wishes the other."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysft.runs.events import Event


class Wish(IntEnum):
    """What the workers are asked to do after the step they are in; the greater one counts."""

    GO_ON = 0
    SAVE = 1  # a checkpoint, and go on
    STOP = 2  # a checkpoint, and end


class MailboxActor:
    """Holds events until the driver fetches them. Lives on after workers that died."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.wish = Wish.GO_ON
        self.changed = asyncio.Condition()

    async def put(self, event: Event) -> None:
        self.events.put_nowait(event)
        if event["event"] == "checkpoint" and self.wish == Wish.SAVE:
            await self._set(Wish.GO_ON)

    async def fetch(self, timeout_s: float) -> list[Event]:
        """All there are, or the first that comes within `timeout_s`; none if none comes."""
        found: list[Event] = []
        if self.events.empty() and timeout_s:
            try:
                found.append(await asyncio.wait_for(self.events.get(), timeout_s))
            except TimeoutError:
                return []
        while not self.events.empty():
            found.append(self.events.get_nowait())
        return found

    async def ask(self, wish: Wish) -> None:
        await self._set(max(wish, self.wish))

    async def wish_after(self, known: Wish) -> Wish:
        """The wish, as soon as it is another than the one known."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.wish != known)
            return self.wish

    async def _set(self, wish: Wish) -> None:
        async with self.changed:
            self.wish = wish
            self.changed.notify_all()


def open_mailbox() -> Any:
    """A new one on this node: it is not lost with the node of a worker."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(MailboxActor).remote()


def post(mailbox: Any) -> Callable[[Event], None]:
    """A function that puts an event into it, and returns when it is there."""

    def put(event: Event) -> None:
        ray.get(mailbox.put.remote(event))

    return put


class Wishes:
    """The newest wish of the driver, in a process that may be computing; costs a waiting thread."""

    def __init__(self, mailbox: Any) -> None:
        self.newest = Wish.GO_ON
        threading.Thread(target=self._follow, args=(mailbox,), daemon=True).start()

    def _follow(self, mailbox: Any) -> None:
        while self.newest != Wish.STOP:
            self.newest = ray.get(mailbox.wish_after.remote(self.newest))


@contextmanager
def first_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM sets the event; the second is what it was before.

    Elsewhere than in the main thread, which is the one that gets signals, nothing changes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        before.clear()

    def note(_signum: int, _frame: object) -> None:
        asked.set()
        restore()

    for signum in (signal.SIGINT, signal.SIGTERM):
        before[signum] = signal.signal(signum, note)
    try:
        yield asked
    finally:
        restore()
