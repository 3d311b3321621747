"""How the workers learn, all at the same step, that the driver asked them to stop."""

from typing import Any

import torch
import torch.distributed as dist

from raysft.channel import watch_for_stop


class StopFlag:
    """Whether the driver asked to stop, which all ranks must learn at the same step.

    The first rank hears of it; the others ask, while they compute, in a collective of one number.
    """

    def __init__(self, mailbox: Any) -> None:
        self.group = dist.new_group(backend="gloo")
        self.asked = watch_for_stop(mailbox) if dist.get_rank() == 0 else None

    def ask(self) -> None:
        self.flag = torch.tensor([self.asked is not None and self.asked.is_set()], dtype=torch.int8)
        self.work = dist.broadcast(self.flag, 0, group=self.group, async_op=True)

    def answer(self) -> bool:
        self.work.wait()
        return bool(self.flag)
