"""`raysft reward`: preference pairs train a model of what is preferred."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.runs.events import Emit
from raysft.verbs import preference, train
from raysft.verbs.resume import how_to_resume
from raysft.verbs.verb import Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config


def equations(config: "Config") -> list[tuple[str, str]]:
    settings = config.reward_model
    margin = " - margin" if settings.margins else ""
    center = f" + {settings.center:g} (r(chosen) + r(rejected))²" if settings.center else ""
    loss = f"-log sigmoid(r(chosen) - r(rejected){margin}){center}; r: at the last token"
    return preference.equations(config, [("loss", loss)])


def run(config: "Config", run_dir: Path, emit: Emit) -> dict[str, Any]:
    from raysft.train.objectives.reward import reward

    return train.run_objective(config, run_dir, emit, reward(config.reward_model))


REWARD = Verb(
    name="reward",
    help="A reward model: learn from pairs which of two answers is the better one.",
    example="raysft reward reward-demo --name judge",
    plan=equations,
    run=run,
    has_left=train.has_left,
    check_resume=partial(train.check_resume, fixed=(*train.FIXED, "reward_model")),
    done=preference.done,
    interrupted=how_to_resume("the first checkpoint", "from the newest checkpoint"),
    tables=preference.tables,
    write_report=preference.write_report,
    is_elastic=True,
    can_profile=True,
    pairs=True,
)
