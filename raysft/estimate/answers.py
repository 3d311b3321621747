"""What `raysft ppo` holds beside the engine, and what an iteration computes."""

from pathlib import Path

from raysft.config.schema import Config
from raysft.estimate.families import Dims
from raysft.estimate.memory import GIB, WEIGHT_BYTES
from raysft.estimate.shape import dims_of_json, flops, parameters
from raysft.runs.rundir import MODEL

FP32 = 4  # bytes of a reward model's weight, as it is loaded


def beside_gib(config: Config, dims: Dims) -> dict[str, float]:
    """GiB of each worker by part, none of it split over them: two copies of the policy, one to draw
    with and one as reference; reward models that lie here; keys and values of the answers that
    are drawn at once, each as wide as a token's keys, a layer."""
    ppo = config.ppo
    size = WEIGHT_BYTES[config.engine.precision]
    tokens = ppo.prompts_at_once * ppo.group * config.batch.seq_len
    return {
        "copy and reference": 2.0 * size * sum(parameters(dims).values()) / GIB,
        "reward models": sum(map(reward_model_gib, named(config))),
        "keys and values": 2.0 * size * dims.n_layer * dims.key_value * tokens / GIB,
    }


def named(config: Config) -> list[str]:
    checker = config.ppo.checker
    return [name for name, _ in config.ppo.rewards] + ([checker] if checker else [])


def reward_model_gib(name: str) -> float:
    """0 where there is none of that name: a rule or a function."""
    places = (Path(name) / "config.json", Path(name) / MODEL / "config.json")
    file = next((place for place in places if place.is_file()), None)
    return FP32 * sum(parameters(dims_of_json(file)).values()) / GIB if file else 0.0


def iteration_flops(config: Config, dims: Dims) -> dict[str, float]:
    """Over all workers, of answers that are all as long as they may be, in records of seq_len.

    Drawing and each of the passes before training (the engine's and the reference's) are a forward
    pass, a third of forward and backward together.
    """
    ppo, length = config.ppo, config.batch.seq_len
    count = config.prompts * ppo.group
    both = sum(flops(dims, count * length, count * length**2, count * ppo.max_new_tokens).values())
    return {"drawing": both / 3, "log-probabilities": 2 * both / 3, "training": ppo.epochs * both}
