"""What the reference of DPO gives every answer, once: no second model is held while training.

The reference is the model that a run starts from, which is what its engine computes before it has
taken a step or loaded a checkpoint.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from raysft.data.containers import DAMAGE
from raysft.data.dataset import TokenDataset
from raysft.data.loader import RankData
from raysft.runs import events, rundir
from raysft.runs.events import Emit
from raysft.train.objectives.pairs import answer_log_probabilities

TOGETHER = 512  # pairs that are packed at once
SETS = ("train", "heldout")


def with_reference(engine: Any, reads: RankData, run_dir: Path, emit: Emit) -> RankData:
    """The same pairs with two numbers each: log P of the chosen and of the rejected answer.

    From the run directory, where a run that goes on finds what its first start has written; or
    else computed, and written there. Every rank must call it, with an engine as it starts.
    """
    file = run_dir / rundir.REFERENCE
    found = read(file, reads) if dist.get_rank() == 0 else None
    there = torch.tensor([found is not None], dtype=torch.int32, device=engine.device)
    dist.broadcast(there, 0)
    if bool(there):
        found = read(file, reads)
        assert found is not None, f"{file} is not the same on all nodes"
    else:
        emit(events.Status("computing the reference's log-probabilities"))
        found = {name: log_probabilities(engine, reads, getattr(reads, name)) for name in SETS}
        if dist.get_rank() == 0:
            write(file, found)
    sets = {name: replace(getattr(reads, name), reference=found[name]) for name in SETS}
    return replace(reads, **sets)


@torch.no_grad()
def log_probabilities(engine: Any, reads: RankData, pairs: TokenDataset) -> NDArray[np.float64]:
    """[R, 2] of all R pairs, on every rank; each rank computes its share."""
    engine.eval()
    result = torch.zeros(len(pairs), 2, dtype=torch.float64, device=engine.device)
    for begin in range(0, len(pairs), TOGETHER):
        some = np.arange(begin, min(begin + TOGETHER, len(pairs)))
        for batch in reads.share(pairs, some):
            on_device = batch.to(engine.device)
            assert on_device.pairs is not None
            logs = answer_log_probabilities(engine, on_device)
            result[on_device.pairs.numbers] = logs.double()
    engine.train()
    dist.all_reduce(result)
    return result.cpu().numpy()


def read(file: Path, reads: RankData) -> dict[str, NDArray[np.float64]] | None:
    """None where there is none, or one of other pairs."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in SETS}
    except (*DAMAGE, OSError, ValueError, KeyError):
        return None
    fits = all(found[name].shape == (len(getattr(reads, name)), 2) for name in SETS)
    return found if fits else None


def write(file: Path, found: dict[str, NDArray[np.float64]]) -> None:
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as stream:
        np.savez(stream, **found)  # type: ignore[arg-type]
    partial.replace(file)
