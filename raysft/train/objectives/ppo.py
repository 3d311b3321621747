"""Policy gradients from rewards: the model writes answers, is told what they are worth, and learns.

An iteration draws answers with a copy of the policy, judges them, and takes `ppo.updates` optimizer
steps on them. The loss of a token is the clipped one of Schulman et al. 2017, equation 7; those of
an answer are summed, and divided by the number of answers of the step, never by their lengths.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from raysft.config.preference import Ppo
from raysft.data.batch import Batch
from raysft.data.loader import RankData
from raysft.train.objectives import sft
from raysft.train.objectives.iterations import with_answers
from raysft.train.objectives.objective import Objective, Sums
from raysft.train.objectives.pairs import pairs_of
from raysft.train.objectives.policy import outputs

# Of each answer: the mean over its tokens.
MEASURES = ("clip_fraction", "update_kl")
# Of the answers of an iteration as they were drawn; not each of them in every run.
FACTS = (
    "reward", "checked", "kl_to_reference", "entropy", "answer_tokens", "ended", "groups_alike",
    "drawing_gap", "explained_variance", "drawing_time_s",
    "scoring_time_s",
)  # fmt: skip


def token_losses(logs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """[n]: -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), with ratio = P / P_old of a token."""
    ratio = (logs - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def loss(settings: Ppo, model: Any, batch: Batch, _gradient_scale: float) -> Sums:
    drawn = batch.drawn
    assert drawn is not None
    logs, values = outputs(settings, model, batch)
    total = token_losses(logs, drawn.old, drawn.advantages, settings.clip).sum()
    if settings.advantage == "critic":
        total = total + settings.critic_weight * ((values - drawn.returns) ** 2).sum() / 2
    gap = (logs - drawn.old).detach()
    ratio = gap.exp()
    clipped = ((ratio - 1).abs() > settings.clip).float()
    columns = torch.stack([clipped, ratio - 1 - gap]) * drawn.share
    return Sums(total, columns.sum(1))


def ppo(settings: Ppo) -> Objective:
    return Objective(
        name="ppo",
        reads=RankData,
        loss=partial(loss, settings),
        counts=pairs_of,
        evaluate=sft.evaluate,
        reports=sft.SFT.reports,
        measures=MEASURES,
        facts=FACTS,
        draws=True,
        critic=settings.advantage == "critic",
        updates=settings.updates,
        prepares=partial(with_answers, settings),
    )
