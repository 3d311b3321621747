"""What Ray Train carries to a worker. Imports nothing heavy.

Ray's controller unpickles it too, in a process of its own that trains nothing: it is to load
neither torch nor transformers for that.
"""

import os
from contextlib import suppress
from typing import Any


def work_in(folder: str) -> None:
    """What is given relative to the folder in which a command was typed is found by its workers
    too, where that folder is there: those of a Ray that was there before start in another one."""
    with suppress(OSError):
        os.chdir(folder)


def train_loop_per_worker(options: dict[str, Any]) -> dict[str, Any]:
    """Unpickle the job, fetch the data, train, and let the model answer.

    A loss that is not finite, which every rank meets at the same step, is returned and not raised:
    Ray Train would start the workers again for it.
    """
    import ray
    import torch.distributed as dist

    from raysft.errors import NotFinite
    from raysft.runs import events
    from raysft.train.answers import answer_heldout
    from raysft.train.mailbox import post

    work_in(options["folder"])
    train, heldout = ray.get([options["train"], options["heldout"]])
    job, program = ray.cloudpickle.loads(options["job"])
    if dist.get_rank() == 0:
        place = ray.util.get_current_placement_group().id.hex()
        post(options["mailbox"])(events.Placed(place))
    try:
        totals: dict[str, Any] = program(job, train, heldout, options["mailbox"])
    except NotFinite as error:
        return {"not_finite": (str(error), error.step)}
    if job.answers and "interrupted" not in totals:
        totals |= answer_heldout(job, heldout, options["mailbox"])
    return totals
