"""Up to which learning rate training holds: ladders of rates, by warmup, clipping, precision and
seed."""

from collections.abc import Mapping
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
from raysft.studies.point_runs import Inputs, Placed, check_heldout, config_at, require_heldout
from raysft.studies.points import Point, run_study
from raysft.studies.stability.curves import facts_of
from raysft.studies.stability.report import STUDY

EVALUATIONS = 10  # after equal parts of a run, at each of which it may be found to have diverged


def check(config: Config) -> None:
    """Raises UserError where nothing could be compared, or a combination is no valid config."""
    check_heldout(config, "rates")
    if len(rates(config)) < 2:
        raise UserError("bench.lrs has one rate: take two or more, or none could be the largest")
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
    return run_study(STUDY, points(inputs.config), measure_ladder, inputs, emit)


def measure_ladder(inputs: Inputs, point: Point, folder: Path, placed: Placed) -> dict[str, Any]:
    """Train at each rate until one diverges, in the same workers."""
    from raysft.studies.stability.climb import climb

    listed = rates(inputs.config)
    configs = [point_config(inputs.config, point, lr) for lr in listed]
    last = total_steps(configs[0], epoch_length(inputs.train))
    ladder = Ladder()
    result = fit(
        configs[0], inputs.train, inputs.heldout, inputs.hf_config, inputs.tokenizer, folder,
        ladder, exports=False, evaluates_after=evaluated_after(last), placed=placed,
        program=partial(climb, configs),
    )  # fmt: skip
    ends = result.totals["ends"]
    return {
        "runs": [
            {"lr": lr, **how_it_ended(end), **facts_of(lines)}
            for lr, end, lines in zip(listed, ends, ladder.runs, strict=False)
        ],
        "total_steps": last,
        "observed": ladder.observed,
    }


def evaluated_after(total: int) -> tuple[int, ...]:
    return tuple(sorted({-(-total * part // EVALUATIONS) for part in range(1, EVALUATIONS + 1)}))


def how_it_ended(end: tuple[str, int] | None) -> dict[str, Any]:
    if end is None:
        return {"diverged": False, "why": None, "diverged_step": None}
    return {"diverged": True, "why": end[0], "diverged_step": end[1]}


class Ladder:
    """Gets the events of workers that train several times, and keeps the lines of each run."""

    def __init__(self) -> None:
        self.runs: list[list[Mapping[str, Any]]] = []
        self.observed: Mapping[str, Any] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case events.Workers():
                self.observed = event.observed
            case events.Started():
                self.runs.append([])
            case events.Metrics():
                self.runs[-1].append({"step": event.step, **event.values})
            case events.Restart():  # the workers begin again with the first rate
                self.runs.clear()
