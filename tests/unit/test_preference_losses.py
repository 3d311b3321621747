"""The losses of pairs: their values, and what they converge to where that can be enumerated."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from raysft.config.preference import Dpo
from raysft.train.objectives.dpo import FALLEN, caution, pair_loss
from raysft.train.objectives.pairs import is_right
from tests.unit.language import Language, answer_logs, make_language, optimum, total_variation

BETA = 0.5


@pytest.fixture(scope="module")
def language() -> Language:
    return make_language()


def trained(language: Language, settings: Dpo, lengths: Tensor) -> Tensor:
    """log P of all answers by the policy that the loss over all pairs converges to.

    Each pair is there in both directions, as often as Bradley and Terry have them. lengths: what an
    answer's log-probability is divided by.
    """
    first, second = torch.triu_indices(*[language.reward.shape[1]] * 2, offset=1)
    reference = answer_logs(language.reference, language) / lengths
    gap = language.reward[:, first] - language.reward[:, second]
    wins = torch.sigmoid(gap).flatten()
    logits = language.reference.clone().requires_grad_()

    def both(logs: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([logs[:, a].flatten(), logs[:, b].flatten()], dim=1)

    optimizer = torch.optim.LBFGS([logits], max_iter=400, history_size=30, tolerance_change=1e-13,
                                  tolerance_grad=1e-9, line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Any:
        optimizer.zero_grad()
        policy = answer_logs(logits, language) / lengths
        right = pair_loss(both(policy, first, second), both(reference, first, second), settings)
        wrong = pair_loss(both(policy, second, first), both(reference, second, first), settings)
        loss = (wins * right + (1 - wins) * wrong).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return answer_logs(logits.detach(), language)


def test_dpo_converges_to_the_optimum_of_its_objective(language: Language) -> None:
    """pi* ~ pi_ref exp(r / beta): found by sums of log-probabilities, and not by their means."""
    reference = answer_logs(language.reference, language)
    torch.testing.assert_close(reference.exp().sum(-1), torch.ones(2, dtype=torch.float64))
    best = optimum(reference, language.reward, BETA)
    assert total_variation(reference, best) > 0.4
    settings = Dpo(beta=BETA, nll_weight=0.0)
    ones = torch.ones(language.reward.shape[1], dtype=torch.float64)
    assert total_variation(trained(language, settings, ones), best) < 0.005
    means = trained(language, settings, language.there.sum(-1).clamp(min=1))
    assert total_variation(means, best) > 0.1


def test_values_of_the_losses() -> None:
    policy = torch.tensor([[-3.0, -7.0], [-5.0, -4.0]])
    reference = torch.tensor([[-4.0, -6.0], [-5.0, -4.0]])
    h = [2.0, 0.0]
    plain = pair_loss(policy, reference, Dpo(beta=0.3))
    assert plain.tolist() == pytest.approx([math.log(1 + math.exp(-0.3 * x)) for x in h])
    smoothed = pair_loss(policy, reference, Dpo(beta=0.3, label_smoothing=0.1))
    wrong = [math.log(1 + math.exp(0.3 * x)) for x in h]
    expected = [0.9 * a + 0.1 * b for a, b in zip(plain.tolist(), wrong, strict=True)]
    assert smoothed.tolist() == pytest.approx(expected)
    ipo = pair_loss(policy, reference, Dpo(beta=0.25, loss="ipo"))
    assert ipo.tolist() == pytest.approx([(x - 2.0) ** 2 for x in h])


def test_a_loss_far_out_is_finite() -> None:
    far = torch.tensor([[-1e4, 0.0]], requires_grad=True)
    loss = pair_loss(far, torch.zeros(1, 2), Dpo(beta=1.0)).sum()
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert torch.isfinite(far.grad).all()  # type: ignore[arg-type]


def test_a_tie_counts_half() -> None:
    assert is_right(torch.tensor([1.0, 0.0, -2.0, 0.0])).tolist() == [1.0, 0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("accuracy", "logp", "told"),
    [(0.9, -20 * (1 + 2 * FALLEN), True), (0.9, -20.5, False), (0.6, -40.0, False)],
)
def test_falling_answers_are_told_where_the_accuracy_rises(
    accuracy: float, logp: float, told: bool
) -> None:
    first = {"eval_accuracy": 0.64, "eval_logp_chosen": -20.0}
    found = caution(first, {"eval_accuracy": accuracy, "eval_logp_chosen": logp})
    assert (found is not None) == told
    assert caution({}, {}) is None
    assert caution(first, first) is None
    if found:
        assert "accuracy 0.64 to 0.90" in found
        assert "log-probability -20.0 to -24.0" in found
