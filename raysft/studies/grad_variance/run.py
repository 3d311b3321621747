"""How noisy gradients are: training runs that stop to measure, one for each seed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raysft.config.load import validate, with_overrides
from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset, epoch_length
from raysft.errors import UserError
from raysft.runs import events
from raysft.runs.events import Emit, Event
from raysft.runtime.fit import fit, total_steps
from raysft.runtime.trainer import Placement
from raysft.studies.grad_variance.report import STUDY
from raysft.studies.grad_variance.rows import LOSSES
from raysft.studies.points import Point, run_study
from raysft.studies.seq_len.sequences import joined, rows_of
from raysft.train.schedule import warmup_steps


@dataclass(frozen=True)
class Inputs:
    """What all points share."""

    config: Config
    hf_config: Any
    tokenizer: Any
    records: TokenDataset
    run_dir: Path


def check(config: Config) -> None:
    """Raises UserError where the sequences do not make whole shards, or two of them."""
    bench, workers = config.bench, config.scaling.most
    size = bench.shard_size or workers
    if size % workers:
        raise UserError(
            f"bench.shard_size {size} is not a multiple of scaling.workers {workers}, which share "
            "a shard"
        )
    if bench.examples % size or bench.examples < 2 * size:
        raise UserError(
            f"bench.examples {bench.examples} is not a multiple of {size}, the sequences of a "
            "shard, or less than two of them: there would be no variance to tell"
        )
    if config.engine.precision == "fp16":
        raise UserError(
            "engine.precision fp16 drops gradients that overflow, which would be missing from the "
            'variance: measure in "bf16" or "fp32"'
        )


def points(config: Config) -> list[Point]:
    return [{"seed": config.run.seed + number} for number in range(config.bench.seeds)]


def run(inputs: Inputs, emit: Emit) -> dict[str, Any]:
    """The whole study; returns its summary."""

    def measure(point: Point, folder: Path, placed: Callable[[Placement], None]) -> dict[str, Any]:
        return measure_seed(inputs, point, folder, placed)

    config = inputs.config
    return run_study(STUDY, points(config), measure, config, inputs.run_dir, emit)


def point_config(config: Config, point: Point) -> Config:
    """Of a run that trains on sequences of the longest length."""
    overrides = {
        "run.seed": point["seed"],
        "batch.seq_len": max(config.bench.seq_lens),
        "checkpoint.every_steps": 0,
        "eval.every_steps": 0,
    }
    return validate(with_overrides(config.model_dump(mode="json"), overrides), "bench")


def measure_seed(
    inputs: Inputs, point: Point, folder: Path, placed: Callable[[Placement], None]
) -> dict[str, Any]:
    """Train once, and measure before the first step, after the warmup and after the last."""
    from raysft.studies.grad_variance.measure import objective_for

    config = point_config(inputs.config, point)
    longest = config.batch.seq_len
    count = max(config.batch.global_batch_size, int(inputs.records.lengths.sum()) // longest)
    train = joined(inputs.records, longest, count, config.run.seed)
    last = total_steps(config, epoch_length(train))
    warmed = warmup_steps(config.schedule, last)
    moments: dict[int, Any] = {}
    observed: dict[str, Any] = {}

    def keep(event: Event) -> None:
        if isinstance(event, events.Workers):
            observed.update(event.observed)
        if isinstance(event, events.Metrics) and "eval_loss" in event.values:
            moments[event.step] = rows(event, config)

    nothing = rows_of(np.zeros((0, 1), np.int32), np.zeros((0, 1), np.bool_))
    fit(
        config, train, nothing, inputs.hf_config, inputs.tokenizer, folder, keep,
        objective=objective_for(config), exports=False, evaluates_after=(warmed,), placed=placed,
    )  # fmt: skip
    names = {0: "before training", warmed: "after warmup", last: "at the end"}
    return {
        "measured": [
            {"when": name, "step": step, "at": moments[step]} for step, name in names.items()
        ],
        "observed": observed,
    }


def rows(event: events.Metrics, config: Config) -> list[dict[str, Any]]:
    """What was measured at each length."""
    size = config.bench.shard_size or config.scaling.most
    names = ("mean_square", "square_of_mean")
    return [
        {
            "seq_len": length,
            "loss": event.values[f"{length}/loss"],
            "shards": config.bench.examples // size,
            "shard_size": size,
            **{
                loss: {name: event.values[f"{length}/{loss}/{name}"] for name in names}
                for loss in LOSSES
            },
        }
        for length in config.bench.seq_lens
    ]
