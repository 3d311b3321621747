"""What the weight of the prompts' tokens in the loss does: runs of equal steps, by weight and
seed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from raysft.config.schema import Config
from raysft.runs import rundir
from raysft.runs.events import Emit
from raysft.studies.masking.report import STUDY
from raysft.studies.point_runs import (
    Inputs,
    Placed,
    check_gradients,
    check_heldout,
    check_several,
    config_at,
    require_heldout,
    train_once,
)
from raysft.studies.points import Point, one_by_one, run_study


def check(config: Config) -> None:
    """Raises UserError where nothing could be compared."""
    check_several(config.bench.prompt_loss_weights, "bench.prompt_loss_weights", "weight")
    check_heldout(config, "weights")
    check_gradients(config)


def points(config: Config) -> list[Point]:
    bench, first = config.bench, config.run.seed
    return [
        {"weight": weight, "seed": first + number}
        for weight in sorted(set(bench.prompt_loss_weights))
        for number in range(bench.seeds)
    ]


def run(inputs: Inputs, emit: Emit) -> dict[str, Any]:
    """The whole study; returns its summary. Raises UserError where no record is held out."""
    require_heldout(inputs.heldout, "weights")
    return run_study(STUDY, points(inputs.config), one_by_one(measure_weight), inputs, emit)


def point_config(config: Config, point: Point) -> Config:
    overrides = {"run.seed": point["seed"], "data.prompt_loss_weight": point["weight"]}
    return config_at(config, overrides)


def measure_weight(inputs: Inputs, point: Point, folder: Path, placed: Placed) -> dict[str, Any]:
    """Train with this weight; losses and gradients before and after, then answers of the model."""
    from raysft.studies.masking.measure import GRADIENTS, answers_of, objective_for

    config = point_config(inputs.config, point)
    lines, observed = train_once(
        inputs, config, folder, placed, train=replace(inputs.train, prompt_weight=point["weight"]),
        heldout=inputs.heldout, objective=objective_for(config),
    )  # fmt: skip
    names = ("eval_loss", "eval_instruction_loss", *GRADIENTS)
    return {
        "measured": [
            {"step": step, **{name: lines[step][name] for name in names}}
            for step in (0, max(lines))
        ],
        **answers_of(config, folder / rundir.MODEL, inputs.heldout),
        "observed": observed,
    }
