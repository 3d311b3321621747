"""What the driver asks of the workers, and when a request is granted."""

import asyncio
import socket

from raysft.runs.events import Checkpoint, Metrics
from raysft.runtime.scaling_policy import answers
from raysft.train.mailbox import MailboxActor, Request


def test_a_request_for_a_checkpoint_ends_with_the_checkpoint() -> None:
    async def talk() -> list[Request]:
        mailbox = MailboxActor()
        waiting = asyncio.create_task(mailbox.request_after(Request.GO_ON))
        await mailbox.ask(Request.SAVE)
        heard = [await waiting]
        waiting = asyncio.create_task(mailbox.request_after(Request.SAVE))
        await mailbox.put(Metrics(4, {}))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await mailbox.put(Checkpoint(4))
        heard.append(await waiting)
        assert await mailbox.fetch(0) == [Metrics(4, {}), Checkpoint(4)]
        return heard

    assert asyncio.run(talk()) == [Request.SAVE, Request.GO_ON]


def test_a_request_to_stop_outlives_checkpoints_and_lesser_requests() -> None:
    """Workers that start again hear of it too."""

    async def talk() -> Request:
        mailbox = MailboxActor()
        await mailbox.ask(Request.STOP)
        await mailbox.ask(Request.SAVE)
        await mailbox.put(Checkpoint(4))
        return await mailbox.request_after(Request.GO_ON)

    assert asyncio.run(talk()) == Request.STOP


def test_a_node_answers_or_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert answers("127.0.0.1", port)
    assert not answers("127.0.0.1", port)
