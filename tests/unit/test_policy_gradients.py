"""Where policy gradients lead, on a language whose optimum is known: a table of logits in place of
a model, and raysft's own advantages and losses."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from raysft.config.preference import Ppo
from raysft.train.advantage import leave_one_out, sums_of
from raysft.train.objectives.policy import Valued, valued
from raysft.train.objectives.ppo import token_losses
from tests.unit.language import (
    Language,
    answer_logs,
    divergence,
    make_language,
    objective,
    optimum,
    token_logs,
    total_variation,
)

BETA = 0.5
CLOSE = 0.03  # total variation that counts as the optimum


@pytest.fixture(scope="module")
def language() -> Language:
    return make_language()


class Made(NamedTuple):
    """N answers and the n tokens of them, end to end."""

    answer: Tensor  # int64 [n], of each token
    lengths: Any  # [N]
    logs: Tensor  # [n], with a gradient
    reference: Tensor  # [n]
    old: Tensor  # [n]


Losses = Callable[[Ppo, Made, Tensor], Tensor]  # with advantages [n]: [n]


def clipped(settings: Ppo, made: Made, advantages: Tensor) -> Tensor:
    return token_losses(made.logs, made.old, advantages, settings.clip)


def with_k3(settings: Ppo, made: Made, advantages: Tensor) -> Tensor:
    gap = made.reference - made.logs
    return clipped(settings, made, advantages) + settings.beta * (gap.exp() - gap - 1)


def of_means(settings: Ppo, rollout: Any, old: Any, reference: Any, _values: Any) -> Valued:
    """As if an answer's log-probability were the mean of those of its tokens."""
    kl = sums_of(old - reference, rollout.lengths) / rollout.lengths
    of_answers = leave_one_out(rollout.rewards - settings.beta * kl, settings.group)
    return Valued(np.repeat(of_answers, rollout.lengths), 0 * old)


def by_spread(settings: Ppo, rollout: Any, old: Any, reference: Any, _values: Any) -> Valued:
    """Rewards less their mean, divided by their spread, before the KL divergence is taken off."""
    groups = rollout.rewards.reshape(-1, settings.group)
    scaled = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, keepdims=True) + 1e-4)
    worth = scaled.ravel() - settings.beta * sums_of(old - reference, rollout.lengths)
    return Valued(np.repeat(leave_one_out(worth, settings.group), rollout.lengths), 0 * old)


def of_reward_alone(settings: Ppo, rollout: Any, old: Any, reference: Any, values: Any) -> Valued:
    free = settings.model_copy(update={"beta": 0.0})
    return valued(free, rollout, old, reference, values)


def trained(
    language: Language,
    settings: Ppo,
    advantages: Any = valued,
    losses: Losses = clipped,
    iterations: int = 300,
    prompts: int = 128,
    watch: Callable[[Tensor], None] = lambda _logs: None,
) -> Tensor:
    """log P of all answers, [2, A], by the policy that `iterations` of so many answers lead to."""
    torch.manual_seed(1)
    logits = language.reference.clone().requires_grad_()
    table = torch.zeros(logits.shape[:2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, table], lr=0.05, betas=(0.9, 0.95))
    reference = token_logs(language.reference, language)
    count = language.there.sum(-1).long()
    for _ in range(iterations):
        watch(answer_logs(logits.detach(), language))
        prompt = torch.arange(prompts) % 2
        chances = answer_logs(logits.detach(), language).exp()[prompt]
        drawn = torch.multinomial(chances, settings.group, replacement=True).ravel()
        of = prompt.repeat_interleave(settings.group)
        there = language.there[drawn].bool()
        lengths = count[drawn].numpy()
        answer = torch.arange(len(drawn)).repeat_interleave(count[drawn])
        frozen = token_logs(logits.detach(), language)[of, drawn][there]
        of_reference = reference[of, drawn][there]
        rollout: Any = SimpleNamespace(rewards=language.reward[of, drawn].numpy(), lengths=lengths)
        rows = language.rows[drawn][there]
        values = table[of[answer], rows]
        arrays = [t.detach().numpy() for t in (frozen, of_reference, values)]
        told = advantages(settings, rollout, *arrays)
        for _ in range(settings.epochs):
            logs = token_logs(logits, language)[of, drawn][there]
            made = Made(answer, lengths, logs, of_reference, frozen)
            loss = losses(settings, made, torch.from_numpy(told.advantages)).sum()
            error = (table[of[answer], rows] - torch.from_numpy(told.returns)) ** 2
            optimizer.zero_grad()
            ((loss + error.sum()) / len(drawn)).backward()
            optimizer.step()
    return answer_logs(logits.detach(), language)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": 2, "clip": 0.2},
        {"advantage": "critic"},
        {"advantage": "critic", "lam": 1.0},
        {"advantage": "critic", "group": 1},
    ],
    ids=str,
)
def test_the_optimum_is_reached(language: Language, changes: dict[str, Any]) -> None:
    """pi_ref exp(r / beta) / Z; and on the way, what is missing is beta KL(pi, optimum)."""
    reference = answer_logs(language.reference, language)
    best = optimum(reference, language.reward, BETA)
    assert total_variation(reference, best) > 0.5
    gaps: list[float] = []

    def watch(logs: Tensor) -> None:
        """The identity holds of any policy; that it falls along the run is the run's doing."""
        of_best, of_policy = (
            objective(one, reference, language.reward, BETA) for one in (best, logs)
        )
        torch.testing.assert_close(of_best - of_policy, BETA * divergence(logs, best))
        gaps.append(float((of_best - of_policy).mean()))

    prompts = 128 * 8 if changes.get("group") == 1 else 128
    found = trained(language, Ppo(**{"beta": BETA, **changes}), prompts=prompts, watch=watch)
    assert total_variation(found, best) < CLOSE
    assert gaps[0] > 0.5
    assert gaps[50] < gaps[0] / 3
    assert gaps[-1] < 0.01


@pytest.mark.parametrize(
    ("advantages", "losses"),
    [(of_means, clipped), (by_spread, clipped), (of_reward_alone, with_k3)],
    ids=["mean of log-probabilities", "divided by the spread", "k3 in the loss"],
)
def test_what_peers_do_leads_elsewhere(language: Language, advantages: Any, losses: Losses) -> None:
    """Trap 22 among them: this is why none of it is offered."""
    reference = answer_logs(language.reference, language)
    best = optimum(reference, language.reward, BETA)
    found = trained(language, Ppo(beta=BETA), advantages, losses)
    assert total_variation(found, best) > 5 * CLOSE


def test_a_large_beta_stays_at_the_reference(language: Language) -> None:
    reference = answer_logs(language.reference, language)
    assert total_variation(trained(language, Ppo(beta=50.0)), reference) < 0.02


@pytest.mark.parametrize("advantage", ["group", "critic"])
def test_the_gradient_is_that_of_the_objective(language: Language, advantage: Any) -> None:
    """Of very many answers, against the derivative of E[r] - beta KL by enumeration. A critic is
    exact here only with lambda 1 or when it knows all; whitening changes its length."""
    logits = (language.reference + 0.3 * language.reference.flip(0)).requires_grad_()
    reference = answer_logs(language.reference, language)
    exact = objective(answer_logs(logits, language), reference, language.reward, BETA).mean()
    (wanted,) = torch.autograd.grad(-exact, logits)
    torch.manual_seed(0)
    settings = Ppo(beta=BETA, group=400, advantage=advantage, lam=1.0)
    prompt = torch.arange(2000) % 2
    chances = answer_logs(logits.detach(), language).exp()[prompt]
    drawn = torch.multinomial(chances, settings.group, replacement=True).ravel()
    of, there = prompt.repeat_interleave(settings.group), language.there[drawn].bool()
    lengths = language.there.sum(-1).long()[drawn]
    rewards = language.reward[of, drawn].numpy()
    rollout: Any = SimpleNamespace(rewards=rewards, lengths=lengths.numpy())
    logs = token_logs(logits, language)[of, drawn][there]
    old, of_reference = logs.detach(), token_logs(language.reference, language)[of, drawn][there]
    told = valued(settings, rollout, old.numpy(), of_reference.numpy(), np.zeros(len(old)))
    loss = token_losses(logs, old, torch.from_numpy(told.advantages), 0.2).sum() / len(drawn)
    (found,) = torch.autograd.grad(loss, logits)
    assert float(torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0)) > 0.995
    if advantage == "group":
        assert float(found.norm() / wanted.norm()) == pytest.approx(1.0, abs=0.02)
