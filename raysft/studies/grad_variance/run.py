"""How noisy gradients are: training runs that stop to measure, one for each seed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raysft.config.schema import Config
from raysft.data.dataset import epoch_length
from raysft.errors import UserError
from raysft.runs.events import Emit
from raysft.runtime.fit import total_steps
from raysft.studies.grad_variance.report import STUDY
from raysft.studies.grad_variance.rows import LOSSES
from raysft.studies.point_runs import Inputs, Placed, check_gradients, config_at, train_once
from raysft.studies.points import Point, one_by_one, run_study
from raysft.studies.seq_len.sequences import joined, rows_of
from raysft.train.schedule import warmup_steps


def check(config: Config) -> None:
    """Raises UserError where the sequences do not make whole shards, or two of them."""
    bench, workers = config.bench, config.scaling.most
    size = bench.shard_size or workers
    if size % workers:
        raise UserError(
            f"bench.shard_size {size} is not a multiple of scaling.workers {workers}, which share "
            "a shard"
        )
    if bench.examples < 2 * size:
        raise UserError(
            f"bench.examples {bench.examples}: take {2 * size} or more, two shards of {size}, or "
            "there would be no variance to tell"
        )
    if bench.examples % size:
        raise UserError(
            f"bench.examples {bench.examples} is not a multiple of {size}, the sequences of a shard"
        )
    check_gradients(config)


def points(config: Config) -> list[Point]:
    return [{"seed": config.run.seed + number} for number in range(config.bench.seeds)]


def run(inputs: Inputs, emit: Emit) -> dict[str, Any]:
    """The whole study; returns its summary."""
    return run_study(STUDY, points(inputs.config), one_by_one(measure_seed), inputs, emit)


def point_config(config: Config, point: Point) -> Config:
    """Of a run that trains on sequences of the longest length."""
    longest = max(config.bench.seq_lens)
    return config_at(config, {"run.seed": point["seed"], "batch.seq_len": longest})


def measure_seed(inputs: Inputs, point: Point, folder: Path, placed: Placed) -> dict[str, Any]:
    """Train once, and measure before the first step, after the warmup and after the last."""
    from raysft.studies.grad_variance.measure import objective_for

    config = point_config(inputs.config, point)
    longest = config.batch.seq_len
    count = max(config.batch.global_batch_size, int(inputs.train.lengths.sum()) // longest)
    train = joined(inputs.train, longest, count, config.run.seed)
    last = total_steps(config, epoch_length(train))
    warmed = warmup_steps(config.schedule, last)
    nothing = rows_of(np.zeros((0, 1), np.int32), np.zeros((0, 1), np.bool_))
    evaluated, observed = train_once(
        inputs, config, folder, placed, train=train, heldout=nothing,
        objective=objective_for(config), exports=False, evaluates_after=(warmed,),
    )  # fmt: skip
    names = {0: "before training", warmed: "after warmup", last: "at the end"}
    return {
        "measured": [
            {"when": name, "step": step, "at": rows(evaluated[step], config)}
            for step, name in names.items()
        ],
        "observed": observed,
    }


def rows(found: Mapping[str, Any], config: Config) -> list[dict[str, Any]]:
    """What was measured at each length."""
    size = config.bench.shard_size or config.scaling.most
    names = ("mean_square", "square_of_mean")
    return [
        {
            "seq_len": length,
            "loss": found[f"{length}/loss"],
            "shards": config.bench.examples // size,
            "shard_size": size,
            **{loss: {name: found[f"{length}/{loss}/{name}"] for name in names} for loss in LOSSES},
        }
        for length in config.bench.seq_lens
    ]
