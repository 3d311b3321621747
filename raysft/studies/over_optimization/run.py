"""How far a learned reward can be followed: runs of `raysft ppo` by beta and seed."""

from pathlib import Path
from typing import Any

from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.runs.events import Emit
from raysft.studies.over_optimization.report import STUDY
from raysft.studies.point_runs import Inputs, Placed, config_at, train_once
from raysft.studies.points import Point, one_by_one, run_study
from raysft.train.objectives.ppo import ppo

DIGITS = 5  # behind the point: of means over hundreds of answers
LOGGED = ("reward", "checked", "kl_to_reference", "entropy", "answer_tokens")


def check(config: Config) -> None:
    """Raises UserError where nothing could be compared."""
    if config.ppo.checker is None:
        raise UserError(
            "over-optimization shows where a reward is not what is wanted: set ppo.checker, which "
            "is watched beside ppo.reward and never trained"
        )
    if config.ppo.stop_kl:
        raise UserError("ppo.stop_kl would end the runs before what they are to show: leave it out")


def points(config: Config) -> list[Point]:
    bench, first = config.bench, config.run.seed
    return [
        {"beta": beta, "seed": first + number}
        for beta in sorted(set(bench.betas))
        for number in range(bench.seeds)
    ]


def run(inputs: Inputs, emit: Emit) -> dict[str, Any]:
    """The whole study; returns its summary."""
    return run_study(STUDY, points(inputs.config), one_by_one(measure_beta), inputs, emit)


def point_config(config: Config, point: Point) -> Config:
    """Every iteration is logged."""
    overrides = {
        "run.seed": point["seed"],
        "ppo.beta": point["beta"],
        "log.every_steps": config.ppo.updates,
    }
    return config_at(config, overrides)


def measure_beta(inputs: Inputs, point: Point, folder: Path, placed: Placed) -> dict[str, Any]:
    """The answers of each iteration as they were drawn."""
    config = point_config(inputs.config, point)
    lines, observed = train_once(
        inputs, config, folder, placed, train=inputs.train, heldout=inputs.heldout,
        objective=ppo(config.ppo), exports=False, wanted="reward",
    )  # fmt: skip
    drawn = [{key: round(line[key], DIGITS) for key in LOGGED} for _, line in sorted(lines.items())]
    return {"drawn": drawn, "observed": observed}
