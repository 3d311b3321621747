"""What more records buy: runs on subsets that double, by optimizer steps and by epochs."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.runs.events import Emit
from raysft.studies.data_size.report import STUDY
from raysft.studies.point_runs import (
    Inputs,
    Placed,
    check_heldout,
    check_several,
    config_at,
    require_heldout,
    train_once,
)
from raysft.studies.points import Point, one_by_one, run_study

FEWEST = 100  # records, where the config names no sizes


def check(config: Config) -> None:
    """Raises UserError where nothing could be compared."""
    if config.run.max_steps is None:
        raise UserError(
            "run.max_steps is not set: the sizes are compared at equal optimizer steps, and at as "
            "many epochs as those are of the largest size"
        )
    if config.bench.data_sizes is not None:
        check_several(config.bench.data_sizes, "bench.data_sizes", "size")
    check_heldout(config, "sizes")


def sizes(config: Config, num_records: int) -> list[int]:
    """Numbers of records, the least first. Raises UserError where there are not so many, or where
    the config names none and there are too few for two."""
    chosen = config.bench.data_sizes
    if chosen is None and num_records <= FEWEST:
        raise UserError(
            f"{num_records:,} training records make no two sizes from {FEWEST} on: name some, such "
            f"as bench.data_sizes = [{max(1, num_records // 4)}, {num_records}]"
        )
    if chosen is None:
        doubled = [FEWEST * 2**k for k in range(40) if FEWEST * 2**k < num_records]
        return [*doubled, num_records]
    if max(chosen) > num_records:
        raise UserError(
            f"bench.data_sizes: {max(chosen):,} is more than the {num_records:,} training records"
        )
    return sorted(set(chosen))


def points(config: Config, num_records: int) -> list[Point]:
    """Of each size, matched with the largest by steps and by epochs, which are the same for it."""
    listed = sizes(config, num_records)
    most, seeds = listed[-1], range(config.run.seed, config.run.seed + config.bench.seeds)
    return [
        {"records": records, "matched": matched, "steps": steps, "seed": seed}
        for records in listed
        for matched, steps in steps_of(config, records, most).items()
        for seed in seeds
    ]


def steps_of(config: Config, records: int, most: int) -> dict[str, int]:
    """Optimizer steps by what they have in common with the largest size."""
    assert config.run.max_steps
    every = {"steps": config.run.max_steps}
    if records == most:
        return every
    return every | {"epochs": math.ceil(config.run.max_steps * records / most)}


def run(inputs: Inputs, emit: Emit) -> dict[str, Any]:
    """The whole study; returns its summary. Raises UserError where no record is held out."""
    require_heldout(inputs.heldout, "sizes")
    listed = points(inputs.config, len(inputs.train))
    return run_study(STUDY, listed, one_by_one(measure_size), inputs, emit)


def subset(train: TokenDataset, records: int, seed: int) -> TokenDataset:
    """So many records drawn at random: those of a smaller subset of the seed are among them."""
    chosen = np.random.default_rng(seed).permutation(len(train))[:records]
    return replace(
        train,
        starts=train.starts[chosen],
        lengths=train.lengths[chosen],
        answers=train.answers[chosen],
        source=train.source[chosen],
    )


def measure_size(inputs: Inputs, point: Point, folder: Path, placed: Placed) -> dict[str, Any]:
    """Train on a subset, and measure the model that comes of it."""
    from raysft.studies.data_size.measure import measured

    overrides = {"run.seed": point["seed"], "run.max_steps": point["steps"]}
    config = config_at(inputs.config, overrides)
    train = subset(inputs.train, point["records"], point["seed"])
    _, observed = train_once(inputs, config, folder, placed, train=train, heldout=inputs.heldout)
    found = measured(config, folder / rundir.MODEL, train, inputs.heldout)
    return {**found, "observed": observed}
