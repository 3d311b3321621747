"""Estimates of variance, noise scale and cosine where the truth is known."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from raysft.studies.moments import Moments
from raysft.studies.statistics import exponent, interval, positive_interval
from raysft.train.gradients import GradientSums, dot

# A linear model y = w x with inputs from N(0, I) of DIMENSION, and targets of true weights w0 with
# noise of variance NOISE. With e = w - w0, an example's gradient is (e x - noise) x, of mean e and
# covariance (|e|^2 + NOISE) I + e e^T (the fourth moments of a normal distribution).
DIMENSION, NOISE = 40, 2.0


def gradients(error: Tensor, count: int, seed: int) -> Tensor:
    """By autograd, one an example: [count, DIMENSION]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, DIMENSION, generator=generator)
    y = NOISE**0.5 * torch.randn(count, generator=generator)
    weights = error.expand(count, DIMENSION).clone().requires_grad_()  # the true ones are 0
    losses = ((weights * x).sum(1) - y) ** 2 / 2
    (found,) = torch.autograd.grad(losses.sum(), weights)
    return found


def error_of(norm: float, seed: int) -> Tensor:
    direction = torch.randn(DIMENSION, generator=torch.Generator().manual_seed(seed))
    return norm * direction / direction.norm()


@pytest.mark.parametrize("norm", [0.5, 3.0])
@pytest.mark.parametrize("shard_size", [1, 4])
def test_variance_and_noise_scale_of_a_linear_model(norm: float, shard_size: int) -> None:
    error = error_of(norm, seed=1)
    variance = DIMENSION * (norm**2 + NOISE) + norm**2
    count = 40_000
    shards = gradients(error, count, seed=2).view(-1, shard_size, DIMENSION).mean(1)
    sums = GradientSums()
    for shard in shards:
        sums.add([shard[:7], shard[7:]])
    moments = Moments(count // shard_size, shard_size, *sums.reduced())
    assert moments.trace == pytest.approx(variance, rel=0.05)
    assert moments.square == pytest.approx(norm**2, rel=0.05)
    assert moments.noise_scale == pytest.approx(variance / norm**2, rel=0.05)


def test_estimates_are_unbiased_where_there_are_few_examples() -> None:
    """Of two examples, of which |mean|^2 alone would be far too large."""
    error = error_of(1.0, seed=3)
    found = gradients(error, 40_000, seed=4).view(-1, 2, DIMENSION)
    traces, squares = [], []
    for pair in found:
        sums = GradientSums()
        for one in pair:
            sums.add([one])
        moments = Moments(2, 1, *sums.reduced())
        traces.append(moments.trace)
        squares.append(moments.square)
    assert sum(traces) / len(traces) == pytest.approx(DIMENSION * 3 + 1, rel=0.05)
    assert sum(squares) / len(squares) == pytest.approx(1.0, rel=0.15)


def test_the_cosine_of_two_mean_gradients() -> None:
    one, other = error_of(2.0, seed=5), error_of(3.0, seed=6)
    mixed = one + other
    means = [gradients(error, 60_000, seed).mean(0) for seed, error in ((7, one), (8, mixed))]
    parts: list[Any] = [[mean[:11], mean[11:]] for mean in means]
    cosine = float(dot(*parts)) / math.sqrt(math.prod(float(dot(part, part)) for part in parts))
    assert cosine == pytest.approx(float(one @ mixed / (one.norm() * mixed.norm())), rel=0.05)


def test_a_factor_scales_a_gradient() -> None:
    plain, scaled = GradientSums(), GradientSums()
    for one in gradients(error_of(1.0, 1), 5, 2):
        plain.add([3 * one])
        scaled.add([one], factor=3)
    assert plain.reduced() == pytest.approx(scaled.reduced())


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    """About 95 of 100 studies of three runs."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 3, generator=generator) + 5
    held = sum(bool(interval(row).holds(5.0)) for row in draws.tolist())
    assert 0.935 < held / 2000 < 0.965
    held = sum(bool(positive_interval(row).holds(math.exp(5))) for row in draws.exp().tolist())
    assert 0.935 < held / 2000 < 0.965


def test_an_interval_of_one_run_is_unknown() -> None:
    alone = interval([2.0])
    assert (alone.low, alone.high, alone.holds(2.0)) == (None, None, None)
    assert alone.words(".1f") == "2.0 (one run, no interval)"
    low, high = interval([1.0, 3.0])[1:3]
    assert (low, high) == pytest.approx((2 - 12.706, 2 + 12.706))


def test_the_exponent_of_a_power_law() -> None:
    x = [64.0, 128.0, 1024.0]
    assert exponent(x, [3 * value**1.3 for value in x]) == pytest.approx(1.3)
