"""How the workers learn, all at the same step, what the driver asks of them."""

from typing import Any

import torch
import torch.distributed as dist

from raysft.train.mailbox import Wish, Wishes


class WishFlag:
    """The first rank hears of it, the others ask while they compute: a collective of one number.

    Every rank must ask and answer at every step. The answer would make a GPU wait: there it is only
    read where a line is logged, every `log_every` steps, which waits anyway.
    """

    def __init__(self, mailbox: Any, device: torch.device, log_every: int) -> None:
        self.device = device
        self.every = log_every if device.type == "cuda" else 1
        self.wishes = Wishes(mailbox) if dist.get_rank() == 0 else None
        self.work: Any = None

    def ask(self, step: int) -> None:
        """step: the one that begins, from 1."""
        self.work = None
        if step % self.every:
            return
        wish = Wish.GO_ON if self.wishes is None else self.wishes.newest
        self.flag = torch.tensor([wish], dtype=torch.int32, device=self.device)
        self.work = dist.broadcast(self.flag, 0, async_op=True)

    def answer(self) -> Wish:
        if self.work is None:
            return Wish.GO_ON
        self.work.wait()
        return Wish(int(self.flag))

    def granted(self) -> None:
        """A wish for a checkpoint is not to be granted twice, before the mailbox says it is."""
        if self.wishes is not None and self.wishes.newest == Wish.SAVE:
            self.wishes.newest = Wish.GO_ON
