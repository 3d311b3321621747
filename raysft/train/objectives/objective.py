"""What a run minimises, as a value: loop, engine and checkpoints are the same for all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from raysft.config.schema import Config
from raysft.data.batch import Batch
from raysft.data.dataset import TokenDataset
from raysft.data.loader import RankData, StepData
from raysft.runs.events import Emit

Found = Mapping[str, float | None]  # metrics of an evaluation


class Sums(NamedTuple):
    """Of a micro-batch, over what the objective counts."""

    loss: Tensor  # fp32 [], with a gradient
    measures: Tensor  # fp32 [k], without: what is logged beside the loss


class Reads(Protocol):
    """What the loop asks of what a rank reads."""

    @property
    def probe(self) -> Tensor: ...

    @property
    def eval_batches(self) -> list[Batch]: ...

    def steps(self, first: int, last: int, device: torch.device) -> Iterator[StepData]: ...


@dataclass(frozen=True)
class Objective:
    """Its functions are called by every rank, and each of them as often as the others.

    reads     what a rank reads: config, training and held-out records, rank, world size
    loss      of a micro-batch: model, batch and gradient scale to sums over what `counts` counts.
              The gradient scale is about what the sum will be multiplied by
    counts    what the sums are divided by: of a whole step, over all micro-batches and ranks; in
              SFT the sum of the tokens' weights, in objectives of pairs their number
    evaluate  engine and held-out batches to metrics over all ranks, `eval_loss` among them
    reports   the keys of those metrics
    measures  the keys of what the loss sums up beside itself
    facts     the keys of what is known of a step before it
    pairs     learns from preference pairs
    scalar    the model has a head of one number, the reward
    draws     learns from answers that the model draws itself
    critic    the model has a value head beside its own
    updates   steps that belong together: a run can be gone on with between them only
    prepares  before any step, with the engine as it starts: what is read from then on
    caution   first and newest metrics of an evaluation to a warning, if there is one
    watches   the engine, before the first step, to what is asked at each log line for metrics of
              the steps since the last one, over all ranks
    """

    name: str
    reads: Callable[[Config, TokenDataset, TokenDataset, int, int], RankData]
    loss: Callable[[Any, Batch, float], Sums]
    counts: Callable[[StepData], float]
    evaluate: Callable[[Any, Sequence[Batch]], Found]
    reports: tuple[str, ...]
    measures: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    pairs: bool = False
    scalar: bool = False
    draws: bool = False
    critic: bool = False
    updates: int = 1
    prepares: Callable[[Any, RankData, Path, Emit], Reads] | None = None
    caution: Callable[[Found, Found], str | None] = lambda first, now: None  # noqa: ARG005
    watches: Callable[[Any], Callable[[], Mapping[str, float | None]]] = lambda _: dict
