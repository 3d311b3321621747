"""When a trial is stopped before its end, or moved: Ray Tune's schedulers as a search uses them."""

import math
import random
from collections.abc import Mapping
from typing import Any

from ray.tune import schedulers

from raysft.config.schema import Config
from raysft.config.space import Domain
from raysft.studies.tune.settings import ray_domain, within
from raysft.train.schedule import DEFAULT_WARMUP_RATIO

REDUCTION = 3  # of asha: at each rung a third goes on


class Population(schedulers.PopulationBasedTraining):  # type: ignore[misc]
    """Population-based training whose trials keep their numbers, and their settings the space."""

    def __init__(self, space: Mapping[str, Domain], **options: Any) -> None:
        super().__init__(**options)
        self.space = space

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """A trial at its end is not moved: it has no step left to go on with."""
        if result.get("status") == "done":
            return str(self.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[Any, Any]:
        point, operations = super()._get_new_config(trial, trial_to_clone)
        settings = point["sample"]["settings"]
        settings |= {key: within(domain, settings[key]) for key, domain in self.space.items()}
        point["sample"]["number"] = trial.config["sample"]["number"]
        return point, operations


def first_judgement(config: Config, total_steps: int) -> int:
    """The step before which no trial is stopped: a ninth of all, or the end of the longest warmup.

    A rate that still rises says little of the loss it leads to, and slow warmups would always lose.
    """
    schedule, space = config.schedule, config.tune.space
    ratio = DEFAULT_WARMUP_RATIO if schedule.warmup_ratio is None else schedule.warmup_ratio
    steps: float = schedule.warmup_steps or ratio * total_steps
    if "schedule.warmup_ratio" in space:
        steps = max(space["schedule.warmup_ratio"].values) * total_steps
    if "schedule.warmup_steps" in space:
        steps = max(space["schedule.warmup_steps"].values)
    return min(total_steps, max(1, total_steps // REDUCTION**2, math.ceil(steps)))


def scheduler(config: Config, total_steps: int) -> Any:
    time_attr = {"time_attr": "step"}
    match config.tune.scheduler:
        case "asha":
            return schedulers.ASHAScheduler(
                **time_attr,
                max_t=total_steps,
                grace_period=first_judgement(config, total_steps),
                reduction_factor=REDUCTION,
            )
        case "median":
            return schedulers.MedianStoppingRule(
                **time_attr,
                grace_period=first_judgement(config, total_steps),
                min_samples_required=3,
                min_time_slice=float("inf"),  # never pauses a trial: it would begin again
            )
        case "pbt":
            random.seed(config.run.seed)
            space = config.tune.space
            moves = {
                key: list(domain.values) if domain.kind == "choice" else ray_domain(domain)
                for key, domain in space.items()
            }
            return Population(
                space,
                **time_attr,
                perturbation_interval=config.eval.every_steps,
                hyperparam_mutations={"sample": {"settings": moves}},
                require_attrs=False,
            )
        case _:
            return None
