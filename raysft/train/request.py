"""How the workers learn, all at the same step, what the driver asks of them."""

from typing import Any

import torch
import torch.distributed as dist

from raysft.train.mailbox import Request, Requests


class RequestFlag:
    """The first rank hears of it, the others ask while they compute: a collective of one number.

    Every rank must ask and answer at every step. The answer would make a GPU wait: there it is only
    read where a line is logged, every `log_every` steps, which waits anyway.
    """

    def __init__(self, mailbox: Any, device: torch.device, log_every: int) -> None:
        self.device = device
        self.every = log_every if device.type == "cuda" else 1
        self.requests = Requests(mailbox) if dist.get_rank() == 0 else None
        self.work: Any = None

    def ask(self, step: int) -> None:
        """step: the one that begins, from 1."""
        self.work = None
        if step % self.every:
            return
        request = Request.GO_ON if self.requests is None else self.requests.newest
        self.flag = torch.tensor([request], dtype=torch.int32, device=self.device)
        self.work = dist.broadcast(self.flag, 0, async_op=True)

    def answer(self) -> Request:
        if self.work is None:
            return Request.GO_ON
        self.work.wait()
        return Request(int(self.flag))

    def granted(self) -> None:
        """A request for a checkpoint is not to be granted twice, before the mailbox says it is."""
        if self.requests is not None and self.requests.newest == Request.SAVE:
            self.requests.newest = Request.GO_ON
