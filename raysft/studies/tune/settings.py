"""What a search tries: the settings of its trials, and the config each of them makes."""

import math
from collections.abc import Callable, Mapping
from itertools import product
from random import Random
from typing import Any

from raysft.config.load import validate, with_overrides
from raysft.config.schema import Config
from raysft.config.space import Domain, Value
from raysft.errors import UserError
from raysft.studies.tune.goal import goal_of
from raysft.studies.tune.trials import Settings, words

# Of a space that are tried against the config's own rules before a search starts: all, if they are
# no more, or so many with each value.
MOST_COMBINATIONS, WITH_EACH = 128, 8
DIGITS = 4  # significant: what a table shows and best.toml holds is what was run
NOT_SEARCHED = {
    "run": "it belongs to the search as a whole",
    "data": "the data is read once, for all trials",
    "batch.seq_len": "the data is cut to it once, for all trials",
    "model.path": "tokenizer and data are read once, for all trials",
    "model.tokenizer": "the data is tokenised once, for all trials",
    "scaling": "it decides how many trials run at once",
    "eval": "trials are compared by it",
    "tune": "it is the search itself",
    "dpo": "it changes the loss that trials are compared by",
    "reward_model": "it changes the loss that trials are compared by",
    "bench": "a search does not use it",
    "pairs": "a search does not use it",
    "align": "a search does not use it",
    "ppo.reward": "it is what trials are after",
    "ppo.checker": "trials are compared by it",
}
CHANGES_REWARD = {
    "ppo.beta": "the least of them would win, for it follows the reward farthest",
    "ppo.missing_eos": "it is a part of the reward",
    "ppo.reward_weights": "they make the reward",
}


def check_search(config: Config, as_computed: Callable[[Config], Config]) -> None:
    """Raises UserError where a trial could not run, or could not be compared with the others.
    as_computed: of what each trial is a run of."""
    tune = config.tune
    for key in tune.space:
        for prefix, why in NOT_SEARCHED.items():
            if key == prefix or key.startswith(prefix + "."):
                raise UserError(f"tune.space: {key} cannot be searched: {why}")
        if key.startswith("ppo.") and tune.verb != "ppo":
            raise UserError(
                f"tune.space: {key} cannot be searched: trials are runs of raysft {tune.verb}, "
                'which does not read it: set tune.verb = "ppo"'
            )
    check_combinations(config, as_computed)
    if goal_of(config).metric == "eval_loss":
        check_evaluations(config)
    else:
        check_rewards(config)


def check_evaluations(config: Config) -> None:
    if not config.data.eval_fraction and config.data.eval_path is None:
        raise UserError(
            "trials are compared by their held-out loss, and no record is held out: set "
            "data.eval_fraction or data.eval_path"
        )
    if config.tune.scheduler != "fifo" and not config.eval.every_steps:
        raise UserError(
            f'tune.scheduler "{config.tune.scheduler}" compares trials while they train: set '
            "eval.every_steps"
        )


def check_rewards(config: Config) -> None:
    """Raises UserError where trials would be compared by what the search itself changes."""
    for key, why in CHANGES_REWARD.items():
        if key in config.tune.space and config.ppo.checker is None:
            raise UserError(
                f"tune.space: {key} cannot be searched with trials compared by ppo.reward: {why}. "
                "Set ppo.checker, by which they are compared then"
            )


def check_combinations(config: Config, as_computed: Callable[[Config], Config]) -> None:
    """Raises UserError where no combination is a config, or none that has one of the values."""
    space = config.tune.space
    faults: dict[tuple[str, Value], UserError] = {}
    valid: set[tuple[str, Value]] = set()
    for settings in corners(space):
        try:
            as_computed(trial_config(config, settings))
            valid |= settings.items()
        except UserError as error:
            faults |= {pair: error for pair in settings.items() if pair not in faults}
    for key, domain in space.items():
        for value in domain.values:
            if (key, value) not in valid:
                raise faults[key, value]


def corners(space: Mapping[str, Domain]) -> list[Settings]:
    """Combinations of the values and the ends of ranges: all, or some with each of them."""
    if math.prod(len(domain.values) for domain in space.values()) <= MOST_COMBINATIONS:
        return combinations(space)
    random = Random(0)
    return [
        {name: value if name == key else random.choice(d.values) for name, d in space.items()}
        for key, domain in space.items()
        for value in domain.values
        for _ in range(WITH_EACH)
    ]


def trial_config(config: Config, settings: Settings) -> Config:
    """The config of one trial. Raises UserError where a value is wrong for its key."""
    overrides: dict[str, Any] = dict(settings)
    if config.tune.scheduler == "pbt":  # a trial goes on from its own checkpoint, or another's
        overrides["checkpoint.every_steps"] = config.eval.every_steps
    raw = with_overrides(config.model_dump(mode="json"), overrides)
    return validate(raw, where="tune.space: " + words(settings))


def num_trials(config: Config) -> int:
    tune = config.tune
    if tune.sampler == "grid":
        return math.prod(len(domain.values) for domain in tune.space.values())
    return tune.num_trials


def grid(config: Config) -> list[Settings]:
    return combinations(config.tune.space)


def combinations(space: Mapping[str, Domain]) -> list[Settings]:
    """All, the last key fastest."""
    return [
        dict(zip(space, values, strict=True))
        for values in product(*(domain.values for domain in space.values()))
    ]


def random_draws(config: Config) -> list[Settings]:
    """The same for the same run.seed, and more trials begin with those of fewer."""
    import numpy as np

    random = np.random.RandomState(config.run.seed)
    domains = {key: ray_domain(domain) for key, domain in config.tune.space.items()}
    return [
        {
            key: within(config.tune.space[key], domain.sample(random_state=random))
            for key, domain in domains.items()
        }
        for _ in range(config.tune.num_trials)
    ]


def ray_domain(domain: Domain) -> Any:
    """The same as an object of Ray Tune's."""
    from ray import tune

    match domain.kind:
        case "uniform":
            return tune.uniform(*domain.values)
        case "loguniform":
            return tune.loguniform(*domain.values)
        case "int":
            low, high = domain.values
            return tune.randint(low, high + 1)
        case _:
            return tune.choice(list(domain.values))


def within(domain: Domain, value: Any) -> Value:
    """A drawn value as a plain one: numbers of a range rounded to DIGITS, and still inside it."""
    value = value.item() if hasattr(value, "item") else value
    if domain.kind in ("choice", "grid"):
        return value  # type: ignore[no-any-return]
    rounded = round(value) if domain.kind == "int" else float(f"{value:.{DIGITS}g}")
    low, high = domain.values
    return min(max(rounded, low), high)  # type: ignore[no-any-return]
