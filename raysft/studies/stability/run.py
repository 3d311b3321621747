"""Up to which learning rate training holds: ladders of rates, by warmup, clipping, precision and
seed."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from raysft.config.schema import Config
from raysft.data.dataset import epoch_length
from raysft.errors import UserError
from raysft.runs import events
from raysft.runs.events import Emit, Event
from raysft.runtime.fit import fit, total_steps
from raysft.studies.point_runs import (
    Inputs,
    Placed,
    check_heldout,
    check_several,
    config_at,
    require_heldout,
)
from raysft.studies.points import Point, Tell, run_study
from raysft.studies.stability.curves import facts_of
from raysft.studies.stability.report import STUDY

EVALUATIONS = 10  # after equal parts of a run, at each of which it may be found to have diverged


def check(config: Config) -> None:
    """Raises UserError where nothing could be compared, or a combination is no valid config."""
    check_heldout(config, "rates")
    check_several(config.bench.lrs, "bench.lrs", "rate")
    if "fp16" in config.bench.precisions and not config.on_gpu:
        raise UserError(
            "bench.precisions: fp16 needs a GPU: set scaling.gpus_per_worker, or take "
            '["fp32", "bf16"]'
        )
    for point in points(config):
        point_config(config, point, rates(config)[0])


def rates(config: Config) -> list[float]:
    return sorted(set(config.bench.lrs))


def points(config: Config) -> list[Point]:
    """Each is a ladder: the rates are tried one after the other."""
    bench = config.bench
    seeds = range(config.run.seed, config.run.seed + bench.seeds)
    names = ("warmup_ratio", "max_grad_norm", "precision", "seed")
    values = (bench.warmup_ratios, bench.max_grad_norms, bench.precisions)
    every = product(*(dict.fromkeys(listed) for listed in values), seeds)
    return [dict(zip(names, point, strict=True)) for point in every]


def point_config(config: Config, point: Point, lr: float) -> Config:
    """Of a run at one rate, which tells of every step."""
    return config_at(config, {
        "optim.lr": lr,
        "optim.max_grad_norm": point["max_grad_norm"],
        "schedule.warmup_ratio": point["warmup_ratio"],
        "schedule.warmup_steps": None,
        "engine.precision": point["precision"],
        "run.seed": point["seed"],
        "log.every_steps": 1,
    })  # fmt: skip


def run(inputs: Inputs, emit: Emit) -> dict[str, Any]:
    """The whole study; returns its summary. Raises UserError where no record is held out."""
    require_heldout(inputs.heldout, "rates")
    listed = points(inputs.config)
    return run_study(STUDY, listed, measure_ladders, inputs, emit, shares=("precision", "seed"))


def measure_ladders(
    inputs: Inputs, ladders: Sequence[Point], folder: Path, placed: Placed, tell: Tell
) -> None:
    """For each point train at each rate until one diverges, all in the same workers."""
    from raysft.studies.stability.climb import climb

    config = inputs.config
    every = [[point_config(config, point, lr) for lr in rates(config)] for point in ladders]
    last = total_steps(config, epoch_length(inputs.train))
    told = Ladders(lambda number, found: tell(ladders[number], {**found, "total_steps": last}))
    fit(
        every[0][0], inputs.train, inputs.heldout, inputs.hf_config, inputs.tokenizer, folder, told,
        exports=False, evaluates_after=evaluated_after(last), placed=placed,
        program=partial(climb, every),
    )  # fmt: skip


def evaluated_after(total: int) -> tuple[int, ...]:
    return tuple(sorted({-(-total * part // EVALUATIONS) for part in range(1, EVALUATIONS + 1)}))


class Ladders:
    """Gets the events of workers that climb several ladders, and tells what each of them was."""

    def __init__(self, tell: Callable[[int, dict[str, Any]], None]) -> None:
        self.tell = tell
        self.lines: list[Mapping[str, Any]] = []  # of the run that is under way
        self.runs: list[dict[str, Any]] = []  # of the ladder that is
        self.observed: Mapping[str, Any] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case events.Workers():
                self.observed = event.observed
            case events.Started():
                self.lines = []
            case events.Metrics():
                self.lines.append({"step": event.step, **event.values})
            case events.Case():
                self.runs.append({**event.result["end"], **facts_of(self.lines)})
                if event.result["last"]:
                    self.tell(
                        event.result["ladder"], {"runs": self.runs, "observed": self.observed}
                    )
                    self.runs = []
            case events.Restart():  # the workers begin again with the first rate of the first one
                self.runs = []
