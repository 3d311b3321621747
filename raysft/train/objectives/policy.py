"""Of answers that a policy has drawn: what it gives their tokens, and what they were worth."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raysft.config.preference import Ppo
from raysft.data.batch import Batch
from raysft.model.critic import value_head, values_at
from raysft.train.advantage import (
    Numbers,
    explained_variance,
    generalised,
    leave_one_out,
    sums_of,
    whitened,
)
from raysft.train.loss import token_log_probability
from raysft.train.rollout import Rollout


def outputs(settings: Ppo, model: Any, batch: Batch) -> Tensor:
    """fp32 [2, n] of the n supervised tokens: their log P at the temperature, and what a critic
    expected before each of them; 0 where there is none."""
    values: list[Tensor] = []
    head = value_head(model)
    beside = None if head is None else lambda hidden: values.append(values_at(head, hidden))
    logs = token_log_probability(model, batch, batch.supervised, settings.temperature, beside)
    return torch.stack([logs, *values] if values else [logs, torch.zeros_like(logs)])


class Valued(NamedTuple):
    """Of all answers' tokens end to end, [n]."""

    advantages: Numbers
    returns: Numbers


def valued(
    settings: Ppo, rollout: Rollout, old: Numbers, reference: Numbers, values: Numbers
) -> Valued:
    """old, reference: log P [n] by the policy and the reference. values: by the critic, [n]."""
    lengths, kl = rollout.lengths, old - reference
    if settings.advantage == "group":
        worth = rollout.rewards - settings.beta * sums_of(kl, lengths)
        of_answers = leave_one_out(worth, settings.group)
        return Valued(np.repeat(of_answers, lengths), np.zeros_like(old))
    rewards = -settings.beta * kl
    rewards[np.cumsum(lengths) - 1] += rollout.rewards
    advantages = generalised(rewards, values, lengths, settings.lam)
    return Valued(whitened(advantages), advantages + values)


def facts_of(
    settings: Ppo, rollout: Rollout, old: Numbers, reference: Numbers, values: Numbers, of: Valued
) -> dict[str, float]:
    """Metrics of the answers as they were drawn, before any step on them."""
    answers, rewards = rollout.answers, rollout.rewards
    facts = {
        "reward": float(rewards.mean()),
        "kl_to_reference": float(sums_of(old - reference, rollout.lengths).mean()),
        "entropy": float(rollout.of_tokens("entropies").mean()),
        "answer_tokens": float(rollout.lengths.mean()),
        "ended": float(np.mean([one.written.ended for one in answers])),
        "groups_alike": float((np.ptp(rewards.reshape(-1, settings.group), axis=1) == 0).mean()),
        "drawing_gap": float(np.abs(rollout.of_tokens("logs") - old).max()),
    }
    if settings.checker is not None:
        facts["checked"] = float(np.mean([one.checked for one in answers]))
    if settings.advantage == "critic":
        facts["explained_variance"] = explained_variance(values, of.returns)
    return facts
