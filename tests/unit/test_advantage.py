"""Advantages by hand."""

import numpy as np
import pytest

from raysft.train.advantage import (
    explained_variance,
    generalised,
    leave_one_out,
    sums_of,
    whitened,
)


def test_an_answer_is_compared_with_the_others_of_its_group() -> None:
    worth = np.array([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    assert leave_one_out(worth, 3).tolist() == [1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0]


def test_generalised_advantages_are_those_of_the_sum() -> None:
    """A_t = sum over l of lam^l delta_(t + l), within an answer."""
    random = np.random.default_rng(0)
    lengths, lam = np.array([3, 1, 4]), 0.7
    rewards, values = random.normal(size=(2, 8))
    expected = []
    for begin, length in zip((0, 3, 4), lengths, strict=True):
        r, v = rewards[begin : begin + length], [*values[begin : begin + length], 0.0]
        deltas = [r[t] + v[t + 1] - v[t] for t in range(length)]
        expected += [
            sum(lam**k * delta for k, delta in enumerate(deltas[t:])) for t in range(length)
        ]
    assert generalised(rewards, values, lengths, lam) == pytest.approx(expected)
    # With lambda 1: what comes, less what was expected.
    returns = [*np.cumsum(rewards[:3][::-1])[::-1], rewards[3], *np.cumsum(rewards[4:][::-1])[::-1]]
    assert generalised(rewards, values, lengths, 1.0) == pytest.approx(np.array(returns) - values)


def test_whitening() -> None:
    """Trap 23: one valid token, or tokens that are all alike, give no NaN."""
    found = whitened(np.array([1.0, 2.0, 6.0]))
    assert found.mean() == pytest.approx(0, abs=1e-9)
    assert found.std() == pytest.approx(1)
    assert whitened(np.array([3.0])).tolist() == [0.0]
    assert whitened(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]


def test_explained_variance() -> None:
    returns = np.array([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(np.full(3, 9.0), returns) == pytest.approx(0.0, abs=1e-6)


def test_sums_of_answers() -> None:
    assert sums_of(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 3])).tolist() == [1.0, 9.0]
