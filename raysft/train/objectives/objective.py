"""What a run minimises, as a value: loop, engine and checkpoints are the same for all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raysft.config.schema import Config
from raysft.data.batch import Batch
from raysft.data.dataset import TokenDataset
from raysft.data.loader import RankData, StepData


@dataclass(frozen=True)
class Objective:
    """Its functions are called by every rank, and each of them as often as the others.

    reads     what a rank reads: config, training and held-out records, rank, world size
    loss      of a micro-batch: model, batch and gradient scale to a sum over what `counts` counts,
              fp32 []. The gradient scale is about what the sum will be multiplied by
    counts    what the sum is divided by, as the sum of the tokens' weights in it: of a whole step,
              over all micro-batches and ranks
    evaluate  engine and held-out batches to metrics over all ranks, `eval_loss` among them
    reports   the keys of those metrics
    watches   the engine, before the first step, to what is asked at each log line for metrics of
              the steps since the last one, over all ranks
    """

    name: str
    reads: Callable[[Config, TokenDataset, TokenDataset, int, int], RankData]
    loss: Callable[[Any, Batch, float], Tensor]
    counts: Callable[[StepData], float]
    evaluate: Callable[[Any, Sequence[Batch]], Mapping[str, float | None]]
    reports: tuple[str, ...]
    watches: Callable[[Any], Callable[[], Mapping[str, float | None]]] = lambda _: dict
