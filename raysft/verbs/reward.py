"""`raysft reward`: preference pairs train a model of what is preferred."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.runs.events import Emit
from raysft.verbs import plan, preference, train

if TYPE_CHECKING:
    from raysft.config.schema import Config


def equations(config: "Config") -> list[tuple[str, str]]:
    plan.refuse_adapter(config, "reward")
    settings = config.reward_model
    margin = " - margin" if settings.margins else ""
    center = f" + {settings.center:g} (r(chosen) + r(rejected))²" if settings.center else ""
    loss = f"-log sigmoid(r(chosen) - r(rejected){margin}){center}; r: at the last token"
    return preference.equations(config, [("loss", loss)])


def run(config: "Config", run_dir: Path, emit: Emit) -> dict[str, Any]:
    from raysft.train.objectives.reward import reward

    return train.run_objective(config, run_dir, emit, reward(config.reward_model))


REWARD = preference.verb(
    name="reward",
    help="A reward model: learn from pairs which of two answers is the better one.",
    example="raysft reward reward-demo --name judge",
    plan=equations,
    run=run,
    section="reward_model",
)
