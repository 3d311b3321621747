"""What the weight of the prompts' tokens in the loss does: runs of equal steps, by weight and
seed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raysft.config.load import validate, with_overrides
from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.errors import UserError
from raysft.runs import events, rundir
from raysft.runs.events import Emit, Event
from raysft.runtime.fit import fit
from raysft.runtime.trainer import Placement
from raysft.studies.masking.report import STUDY
from raysft.studies.points import Point, run_study


@dataclass(frozen=True)
class Inputs:
    """What all points share."""

    config: Config
    hf_config: Any
    tokenizer: Any
    train: TokenDataset
    heldout: TokenDataset
    run_dir: Path


def check(config: Config) -> None:
    """Raises UserError where nothing could be compared."""
    if not config.data.eval_fraction and config.data.eval_path is None:
        raise UserError(
            "weights are compared by their held-out loss, and no record is held out: set "
            "data.eval_fraction or data.eval_path"
        )
    if config.engine.precision == "fp16":
        raise UserError(
            "engine.precision fp16 drops gradients that overflow, which are to be measured: take "
            '"bf16" or "fp32"'
        )


def points(config: Config) -> list[Point]:
    bench, first = config.bench, config.run.seed
    return [
        {"weight": weight, "seed": first + number}
        for weight in sorted(set(bench.prompt_loss_weights))
        for number in range(bench.seeds)
    ]


def run(inputs: Inputs, emit: Emit) -> dict[str, Any]:
    """The whole study; returns its summary. Raises UserError where no record is held out."""
    if not len(inputs.heldout):
        raise UserError(
            "weights are compared by their held-out loss, and no record is held out of so few: "
            "raise data.eval_fraction, or set data.eval_path"
        )

    def measure(point: Point, folder: Path, placed: Callable[[Placement], None]) -> dict[str, Any]:
        return measure_weight(inputs, point, folder, placed)

    config = inputs.config
    return run_study(STUDY, points(config), measure, config, inputs.run_dir, emit)


def point_config(config: Config, point: Point) -> Config:
    overrides = {
        "run.seed": point["seed"],
        "data.prompt_loss_weight": point["weight"],
        "checkpoint.every_steps": 0,
        "eval.every_steps": 0,
    }
    return validate(with_overrides(config.model_dump(mode="json"), overrides), "bench")


def measure_weight(
    inputs: Inputs, point: Point, folder: Path, placed: Callable[[Placement], None]
) -> dict[str, Any]:
    """Train with this weight; losses and gradients before and after, then answers of the model."""
    from raysft.studies.masking.measure import GRADIENTS, answers_of, objective_for

    config = point_config(inputs.config, point)
    lines: dict[int, Any] = {}
    observed: dict[str, Any] = {}

    def keep(event: Event) -> None:
        if isinstance(event, events.Workers):
            observed.update(event.observed)
        if isinstance(event, events.Metrics) and "eval_loss" in event.values:
            lines[event.step] = event.values

    train = replace(inputs.train, prompt_weight=point["weight"])
    fit(
        config, train, inputs.heldout, inputs.hf_config, inputs.tokenizer, folder, keep,
        objective=objective_for(config), placed=placed,
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
