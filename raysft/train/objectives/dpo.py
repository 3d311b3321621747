"""Direct preference optimisation: pairs train the policy itself, without a reward model.

The policy that maximises E[r] - beta KL(pi, pi_ref) is pi_ref exp(r / beta) / Z, so that its own
log-ratio to the reference is a reward: r = beta log(pi / pi_ref) + beta log Z, of which the second
part is the same for all answers to a prompt (Rafailov et al. 2023, equation 5).
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raysft.config.preference import Dpo
from raysft.data.batch import Batch
from raysft.data.loader import RankData
from raysft.train.objectives.objective import Found, Objective, Sums
from raysft.train.objectives.pairs import (
    answer_lengths,
    answer_log_probabilities,
    evaluate_sums,
    is_right,
    pairs_of,
)
from raysft.train.objectives.reference import with_reference

# Of each pair. Rewards are beta log(pi / pi_ref); log-probabilities are of whole answers, in nats.
MEASURES = (
    "pair_loss", "accuracy", "reward_margin", "reward_chosen", "reward_rejected", "logp_chosen",
    "logp_rejected", "kl",
)  # fmt: skip
FALLEN = 0.1  # share of its first log-probability that a chosen answer loses before it is told


def pair_loss(policy: Tensor, reference: Tensor, settings: Dpo) -> Tensor:
    """[P], of log-probabilities [P, 2] of chosen and rejected answers, in nats.

    DPO with label smoothing e (Rafailov et al. 2023, equation 7; Mitchell 2023), h the difference
    of the log-ratios: -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h). IPO (Azar et al. 2023,
    equation 17): (h - 1 / (2 beta))^2.
    """
    ratios = policy - reference
    h = ratios[:, 0] - ratios[:, 1]
    if settings.loss == "ipo":
        return (h - 1 / (2 * settings.beta)) ** 2
    smoothing, beta = settings.label_smoothing, settings.beta
    right, wrong = F.logsigmoid(beta * h), F.logsigmoid(-beta * h)
    return -(1 - smoothing) * right - smoothing * wrong


def loss(settings: Dpo, model: Any, batch: Batch, _gradient_scale: float) -> Sums:
    """Summed over the pairs: the pair's loss, and `nll_weight` times the chosen answer's mean NLL a
    token (as Pang et al. 2024 add it, equation 2)."""
    assert batch.pairs is not None
    policy = answer_log_probabilities(model, batch)
    of_pairs = losses = pair_loss(policy, batch.pairs.reference, settings)
    if settings.nll_weight:
        losses = losses - settings.nll_weight * policy[:, 0] / answer_lengths(batch)[:, 0]
    ratios = (policy - batch.pairs.reference).detach()
    rewards = settings.beta * ratios
    margins = rewards[:, 0] - rewards[:, 1]
    logs = policy.detach()
    columns = [of_pairs.detach(), is_right(margins), margins, *rewards.T, *logs.T, -ratios.mean(1)]
    return Sums(losses.sum(), torch.stack(columns).sum(1))


def caution(first: Found, now: Found) -> str | None:
    """The pairs are told apart better, and the good answers themselves have become unlikely."""
    names = ("eval_accuracy", "eval_logp_chosen")
    (accuracy, logp), (accuracy_now, logp_now) = ([x.get(n) for n in names] for x in (first, now))
    if accuracy is None or logp is None or accuracy_now is None or logp_now is None:
        return None
    if accuracy_now <= accuracy or logp_now >= logp - FALLEN * abs(logp):
        return None
    return (
        f"pairs are told apart better (accuracy {accuracy:.2f} to {accuracy_now:.2f}), but the "
        f"chosen answers have become less likely (log-probability {logp:.1f} to {logp_now:.1f}): "
        "see what the model writes; raise dpo.nll_weight or dpo.beta, or train for fewer steps"
    )


def dpo(settings: Dpo) -> Objective:
    summed = partial(loss, settings)
    return Objective(
        name="dpo",
        reads=RankData,
        loss=summed,
        counts=pairs_of,
        evaluate=partial(evaluate_sums, summed, MEASURES),
        reports=("eval_loss", *(f"eval_{name}" for name in MEASURES)),
        measures=MEASURES,
        pairs=True,
        prepares=with_reference,
        caution=caution,
    )
