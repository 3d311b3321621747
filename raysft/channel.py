"""What runs between the driver and its workers: events one way, the wish to stop the other."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from raysft.events import Event


class MailboxActor:
    """Holds events until the driver fetches them. Lives on after workers that died."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.stop = asyncio.Event()

    async def put(self, event: Event) -> None:
        self.events.put_nowait(event)

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

    async def ask_to_stop(self) -> None:
        self.stop.set()

    async def stop_asked(self) -> None:
        """Returns when it is asked."""
        await self.stop.wait()


Mailbox: Any = ray.remote(num_cpus=0)(MailboxActor)


def post(mailbox: Any) -> Callable[[Event], None]:
    """A function that puts an event into it, and returns when it is there."""

    def put(event: Event) -> None:
        ray.get(mailbox.put.remote(event))

    return put


def watch_for_stop(mailbox: Any) -> threading.Event:
    """Set as soon as the driver asks this process to stop; costs a waiting thread."""
    asked = threading.Event()

    def wait() -> None:
        ray.get(mailbox.stop_asked.remote())
        asked.set()

    threading.Thread(target=wait, daemon=True).start()
    return asked


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
