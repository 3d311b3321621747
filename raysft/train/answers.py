"""The exported model answers held-out records, on the workers that trained it.

They have the devices and the libraries, and take a share each. Answering from the folder, not from
the engine, shows that what was exported is what was trained.
"""

import gc
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raysft.data.dataset import TokenDataset
from raysft.model.answers import (
    ANSWERING,
    Answered,
    Answering,
    Question,
    answered,
    judged,
    questions,
    share_of_answers,
)
from raysft.model.generate import load
from raysft.runs import events, rundir
from raysft.train.mailbox import post
from raysft.train.rank import WorkerJob

NOTHING = {"exact_match": None, "exact_match_records": 0}


def by_folder(folder: Path) -> Answering:
    """Loaded by those alone who have something to answer."""

    def answer_some(asked: list[Question], longest: int) -> list[Answered]:
        return answered(*load(str(folder)), asked, longest)

    return answer_some


def answer_heldout(job: WorkerJob, heldout: TokenDataset, mailbox: Any) -> dict[str, Any]:
    """`exact_match` and what it cost, on every rank alike. The engine must be gone: its memory is
    needed.

    The model is written, so that answers which fail are a warning and not the end of the run.
    """
    config, started = job.config, time.monotonic()
    asked = questions(heldout, max(config.run.samples, config.eval.exact_match_records))
    if not asked:
        return NOTHING
    rank, world_size = dist.get_rank(), dist.get_world_size()
    emit = post(mailbox) if rank == 0 else lambda _: None
    emit(events.Status(ANSWERING))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    share: dict[int, Answered] | str
    try:
        share = share_of_answers(asked, by_folder(job.run_dir / rundir.MODEL), rank, world_size)
    except Exception as error:
        share = f"{type(error).__name__}: {error}"
    shares: list[Any] = [None] * world_size
    dist.all_gather_object(shares, share)
    if failed := [share for share in shares if isinstance(share, str)]:
        emit(events.Warning(f"the model is written, but could not answer: {failed[0]}"))
        return NOTHING
    by_number = {index: one for share in shares for index, one in share.items()}
    found = judged([by_number[index] for index in range(len(asked))], config, emit)
    return found | {"answer_time_s": round(time.monotonic() - started, 2)}
