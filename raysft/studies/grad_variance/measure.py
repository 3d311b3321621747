"""What a worker measures of its gradients, in the place of the held-out loss of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from raysft.config.schema import Config
from raysft.data.batch import Batch, pack, pad
from raysft.data.dataset import TokenDataset
from raysft.data.loader import RankData
from raysft.studies.grad_variance.rows import LOSSES
from raysft.studies.seq_len.sequences import joined
from raysft.train.gradients import GradientSums, gradient_of
from raysft.train.objectives.objective import Objective
from raysft.train.objectives.sft import SFT


@dataclass(frozen=True, eq=False)
class ShardData(RankData):
    """Training data whose held-out batches are the sequences to measure, of this rank: a batch a
    sequence, by length and shard."""

    @cached_property
    def eval_batches(self) -> list[Batch]:
        bench = self.config.bench
        layout = pack if self.config.batch.packing else pad
        share = range(self.rank, bench.examples, self.world_size)  # each shard is a whole multiple
        return [
            layout(sequences, np.array([index]))
            for length in bench.seq_lens
            for sequences in [joined(self.train, length, bench.examples, self.config.run.seed)]
            for index in share
        ]


def shard_data(
    config: Config, train: TokenDataset, heldout: TokenDataset, rank: int, world_size: int
) -> ShardData:
    return ShardData(config, train, heldout, rank, world_size)


def objective_for(config: Config) -> Objective:
    """Supervised fine-tuning that measures gradients where it would evaluate."""
    bench = config.bench

    def evaluate(engine: Any, batches: Sequence[Batch]) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        each = len(batches) // len(bench.seq_lens)
        for number, length in enumerate(bench.seq_lens):
            mine = batches[number * each : (number + 1) * each]
            found |= moments_at(engine, mine, config, prefix=f"{length}/")
        return found | {"eval_loss": found[f"{max(bench.seq_lens)}/loss"]}

    return Objective(
        name="gradient variance",
        reads=shard_data,
        loss=SFT.loss,
        counts=SFT.counts,
        evaluate=evaluate,
        reports=("eval_loss",),
    )


def moments_at(
    engine: Any, batches: Sequence[Batch], config: Config, prefix: str
) -> dict[str, float | None]:
    """Of the gradients of all shards, for a loss that is summed over the tokens of a sequence and
    for one that is their mean; and that mean, in nats a token. batches: of this rank.

    One backward pass gives both: they differ by the shard's number of tokens a sequence.
    """
    bench, world_size = config.bench, dist.get_world_size()
    size = bench.shard_size or world_size
    each = size // world_size
    shards = [batches[begin : begin + each] for begin in range(0, len(batches), each)]
    listed = [sum(map(loss_weight, shard)) for shard in shards]
    weights = torch.tensor(listed, dtype=torch.float64, device=engine.device)
    dist.all_reduce(weights)
    losses = torch.zeros((), device=engine.device)
    sums = {name: GradientSums() for name in LOSSES}
    for shard, count in zip(shards, weights.tolist(), strict=True):
        gradient, nll = gradient_of(engine, SFT, shard, count, config.optim.max_grad_norm)
        losses += nll
        sums["mean"].add(gradient)
        sums["summed"].add(gradient, factor=count / size)
    assert len(shards) * size == bench.examples
    dist.all_reduce(losses)
    result: dict[str, float | None] = {f"{prefix}loss": float(losses) / float(weights.sum())}
    for name, total in sums.items():
        mean_square, square_of_mean = total.reduced()
        result |= {
            f"{prefix}{name}/mean_square": mean_square,
            f"{prefix}{name}/square_of_mean": square_of_mean,
        }
    return result


def loss_weight(batch: Batch) -> float:
    """Sum of the weights of its supervised tokens."""
    return float(len(batch.supervised) if batch.weights is None else batch.weights.sum())
