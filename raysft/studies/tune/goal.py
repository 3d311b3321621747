"""What the trials of a search are runs of, and what they are ranked by. Light imports only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from raysft.config.schema import Config
    from raysft.train.objectives.objective import Objective


@dataclass(frozen=True)
class Trains:
    """What a trial is a run of, by the trial's config."""

    objective: Callable[["Config"], "Objective"]
    as_computed: Callable[["Config"], "Config"]  # raises UserError for what does not go together


class Goal(NamedTuple):
    metric: str  # of metrics.jsonl
    words: str
    unit: str
    higher: bool = False  # is better
    lines: int = 1  # of the log, that a score is the mean of
    diverges: bool = False  # a loss that says when a model has become worse than guessing tokens

    def cost(self, score: float) -> float:
        """The less, the better."""
        return -score if self.higher else score


LOSS = Goal("eval_loss", "held-out loss", "nats a token", diverges=True)
PAIR_LOSS = Goal("eval_loss", "held-out loss", "nats a pair")
# Of the answers that are drawn in training, of which every line of the log has others.
CHECKED = Goal("checked", "checker's mean", "of five log lines", higher=True, lines=5)
REWARD = Goal("reward", "mean reward", "of five log lines", higher=True, lines=5)


def goal_of(config: "Config") -> Goal:
    match config.tune.verb:
        case "train":
            return LOSS
        case "ppo":
            return CHECKED if config.ppo.checker else REWARD
        case _:
            return PAIR_LOSS
