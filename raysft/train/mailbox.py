"""What runs between the driver and its workers: events one way, its requests the other."""

import asyncio
import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysft.runs import events
from raysft.runs.events import Checkpoint, Emit, Event

TICK_S = 0.5  # how often the driver is told of the step, at most


class Request(IntEnum):
    """What the workers are asked to do after the step they are in; the greater one counts."""

    GO_ON = 0
    SAVE = 1  # a checkpoint, and go on
    STOP = 2  # a checkpoint, and end


@dataclass(frozen=True)
class ControllerStarted:
    """From Ray Train's controller to the driver, and no further.

    handle: of the controller, pickled: the mailbox, were it to see the handle itself, would import
    all of Ray Train for it.
    """

    handle: bytes


class MailboxActor:
    """Holds events until the driver fetches them. Lives on after workers that died."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.request = Request.GO_ON
        self.changed = asyncio.Condition()

    async def put(self, event: Event) -> None:
        self.events.put_nowait(event)
        if isinstance(event, Checkpoint) and self.request == Request.SAVE:
            await self._set(Request.GO_ON)

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

    async def ask(self, request: Request) -> None:
        await self._set(max(request, self.request))

    async def request_after(self, known: Request) -> Request:
        """The request, as soon as it is another than the one known."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.request != known)
            return self.request

    async def _set(self, request: Request) -> None:
        async with self.changed:
            self.request = request
            self.changed.notify_all()


def open_mailbox() -> Any:
    """A new one on this node: it is not lost with the node of a worker."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(MailboxActor).remote()


def post(mailbox: Any) -> Emit:
    """A function that puts an event into it, and returns when it is there."""

    def put(event: Event) -> None:
        ray.get(mailbox.put.remote(event))

    return put


class Ticker:
    """Tells the driver of every step, or as many as it can use; nothing waits for that."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox
        self.began = time.monotonic()
        self.last = 0.0
        self.doing = ""

    def __call__(self, step: int, tokens: int, doing: str = "training") -> None:
        """doing: the phase that begins or goes on; a new one is told at once."""
        now = time.monotonic()
        if doing != self.doing or now - self.last >= TICK_S:
            self.doing, self.last = doing, now
            self.mailbox.put.remote(events.Progress(step, tokens, now - self.began, doing))


class Requests:
    """The driver's newest one, in a process that may be computing; costs a waiting thread."""

    def __init__(self, mailbox: Any) -> None:
        self.newest = Request.GO_ON
        threading.Thread(target=self._follow, args=(mailbox,), daemon=True).start()

    def _follow(self, mailbox: Any) -> None:
        while self.newest != Request.STOP:
            self.newest = ray.get(mailbox.request_after.remote(self.newest))
