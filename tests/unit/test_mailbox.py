"""What the driver wishes of the workers, and when a wish is granted."""

import asyncio
import socket

from raysft.runtime.scaling_policy import answers
from raysft.train.mailbox import MailboxActor, Wish


def test_a_wish_for_a_checkpoint_ends_with_the_checkpoint() -> None:
    async def talk() -> list[Wish]:
        mailbox = MailboxActor()
        waiting = asyncio.create_task(mailbox.wish_after(Wish.GO_ON))
        await mailbox.ask(Wish.SAVE)
        heard = [await waiting]
        waiting = asyncio.create_task(mailbox.wish_after(Wish.SAVE))
        await mailbox.put({"event": "metrics", "step": 4})
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await mailbox.put({"event": "checkpoint", "step": 4})
        heard.append(await waiting)
        assert [event["event"] for event in await mailbox.fetch(0)] == ["metrics", "checkpoint"]
        return heard

    assert asyncio.run(talk()) == [Wish.SAVE, Wish.GO_ON]


def test_a_wish_to_stop_outlives_checkpoints_and_lesser_wishes() -> None:
    """Workers that start again hear of it too."""

    async def talk() -> Wish:
        mailbox = MailboxActor()
        await mailbox.ask(Wish.STOP)
        await mailbox.ask(Wish.SAVE)
        await mailbox.put({"event": "checkpoint", "step": 4})
        return await mailbox.wish_after(Wish.GO_ON)

    assert asyncio.run(talk()) == Wish.STOP


def test_a_node_answers_or_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert answers("127.0.0.1", port)
    assert not answers("127.0.0.1", port)
