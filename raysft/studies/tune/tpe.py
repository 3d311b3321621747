"""Optuna's tree-structured Parzen estimator, as Ray Tune has it, with numbered trials."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray.tune.search.optuna import OptunaSearch

from raysft.config.schema import Config
from raysft.config.space import Domain
from raysft.studies.tune.goal import goal_of
from raysft.studies.tune.settings import within
from raysft.studies.tune.trial import SCORE, mode_of
from raysft.studies.tune.trials import Settings

WORST = 1e9  # what a diverged trial counts as; the estimator asks for the order only


def make_tpe(config: Config, before: Sequence[Settings]) -> "NumberedTpe":
    """before: settings to begin with, of the trials that an earlier attempt began."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna draws its first ten at random, which would be all of a small search.
    draws = min(10, max(2, config.tune.num_trials // 3))
    seed = config.run.seed + len(before)  # or a resumed search would draw again what it began with
    return NumberedTpe(
        space={key: distribution(domain) for key, domain in config.tune.space.items()},
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=draws),
        points_to_evaluate=list(before),
        metric=SCORE,
        mode=mode_of(config),
        config=config,
    )


def distribution(domain: Domain) -> BaseDistribution:
    match domain.kind:
        case "uniform":
            return FloatDistribution(*domain.values)
        case "loguniform":
            low, high = domain.values
            return FloatDistribution(low, high, log=True)
        case "int":
            return IntDistribution(*domain.values)
        case _:
            return CategoricalDistribution(domain.values)


class NumberedTpe(OptunaSearch):  # type: ignore[misc]
    """Gives every trial a number, and learns from diverged trials too."""

    def __init__(self, *, config: Config, **options: Any) -> None:
        super().__init__(**options)
        self.domains = config.tune.space
        self.count = 0
        self.worst = -WORST if goal_of(config).higher else WORST

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        found = super().suggest(trial_id)
        self.count += 1
        settings = {key: within(self.domains[key], value) for key, value in found.items()}
        return {"sample": {"number": self.count, "settings": settings}}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Optuna needs no word of a trial before its end."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if result and result.get("status") == "diverged":
            result = {**result, SCORE: self.worst}
        super().on_trial_complete(trial_id, result, error)
