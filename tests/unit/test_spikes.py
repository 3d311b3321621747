"""Which gradient norms are spikes; tests/ray/test_spikes.py has what becomes of their steps."""

import math
from dataclasses import asdict

import pytest
import torch

from raysft.data.loader import StepData
from raysft.train.metrics import Progress
from raysft.train.spikes import FEWEST, WINDOW, is_spike, norm_limit, remember, words
from raysft.train.step import StepResult


def test_the_limit_is_a_multiple_of_the_median() -> None:
    norms = [1.0] * 7 + [2.0, 4.0] + [100.0] * 7  # sorted: the middle two are 2 and 4
    assert norm_limit(norms, 5.0) == 5 * 3.0
    assert norm_limit([*norms, 0.5], 5.0) == 5 * 2.0


def test_there_is_no_limit_before_enough_norms_are_known_or_when_it_is_off() -> None:
    assert norm_limit([1.0] * (FEWEST - 1), 5.0) == math.inf
    assert norm_limit([1.0] * FEWEST, 5.0) == 5.0
    assert norm_limit([1.0] * WINDOW, 0.0) == math.inf


def test_a_spike_is_beyond_the_limit_and_finite() -> None:
    assert is_spike(5.1, 5.0)
    assert is_spike(torch.tensor(5.1), 5.0)
    assert not is_spike(5.0, 5.0)
    assert not is_spike(math.inf, 5.0)
    assert not is_spike(math.nan, 5.0)
    assert not is_spike(1e30, math.inf)


def test_without_a_limit_the_norm_is_not_read() -> None:
    unreadable = torch.empty((), device="meta")  # float() of it raises, as it has no value
    with pytest.raises(RuntimeError):
        float(unreadable)
    assert not is_spike(unreadable, math.inf)


def test_the_window_holds_the_last_finite_norms() -> None:
    norms: list[float] = []
    for step in range(WINDOW + 10):
        remember(norms, float(step))
        remember(norms, math.inf)
        remember(norms, math.nan)
    assert norms == [float(step) for step in range(10, WINDOW + 10)]


def test_norms_that_stay_larger_are_skipped_only_until_the_median_follows() -> None:
    norms = [1.0] * WINDOW
    skipped = 0
    for _ in range(2 * WINDOW):
        skipped += is_spike(10.0, norm_limit(norms, 5.0))
        remember(norms, 10.0)
    # With as many of either the median is 5.5, and 10 is not beyond five times that.
    assert skipped == WINDOW // 2


def test_the_warning_says_all_there_is_to_know() -> None:
    assert words(37, 83.2, 7.0, 5.0) == (
        "step 37: gradient norm 83.2 is beyond 5 x the median 1.4: the update was skipped"
    )


def test_a_skipped_spike_is_a_step_that_does_not_advance_the_schedule() -> None:
    progress = Progress()
    nll, data = (
        torch.zeros(()),
        StepData([], tokens=10, supervised_tokens=5, loss_weight=5, pairs=100),
    )
    progress.advance(data, StepResult(nll, grad_norm=1.0, applied=True, spike=False))
    progress.advance(data, StepResult(nll, grad_norm=9.0, applied=False, spike=True))
    progress.advance(data, StepResult(nll, grad_norm=math.inf, applied=False, spike=False))
    assert (progress.step, progress.applied_steps, progress.spikes_skipped) == (3, 1, 1)


def test_progress_of_a_checkpoint_without_norms_still_loads() -> None:
    saved = asdict(Progress(step=7, applied_steps=7))
    del saved["recent_norms"], saved["spikes_skipped"]
    assert Progress(**saved) == Progress(step=7, applied_steps=7)
    assert "recent_norms" not in Progress().totals()
