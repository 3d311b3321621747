"""How the workers learn, all at the same step, that the driver asked them to stop."""

from typing import Any

import torch
import torch.distributed as dist

from raysft.channel import watch_for_stop


class StopFlag:
    """The first rank hears of it, the others ask while they compute: a collective of one number.

    Every rank must ask and answer at every step. The answer would make a GPU wait: there it is only
    read where a line is logged, every `log_every` steps, which waits anyway.
    """

    def __init__(self, mailbox: Any, device: torch.device, log_every: int) -> None:
        self.device = device
        self.every = log_every if device.type == "cuda" else 1
        self.heard = watch_for_stop(mailbox) if dist.get_rank() == 0 else None
        self.work: Any = None

    def ask(self, step: int) -> None:
        """step: the one that begins, from 1."""
        self.work = None
        if step % self.every:
            return
        heard = self.heard is not None and self.heard.is_set()
        self.flag = torch.tensor([heard], dtype=torch.int32, device=self.device)
        self.work = dist.broadcast(self.flag, 0, async_op=True)

    def answer(self) -> bool:
        if self.work is None:
            return False
        self.work.wait()
        return bool(self.flag)
