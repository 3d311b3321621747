from itertools import pairwise

import pytest

from raysft.config.training import Schedule
from raysft.train.schedule import learning_rate, rate_at, warmup_steps


def rates(total: int, warmup: int, floor: float = 0.1) -> list[float]:
    return [
        learning_rate(step, lr=1.0, warmup_steps=warmup, total_steps=total, min_lr_ratio=floor)
        for step in range(total)
    ]


def test_values_by_hand() -> None:
    # 4 warmup steps, then 4 of cosine from 1 to 0.2: 0.6 + 0.4 cos(pi t / 4), t = 1..4.
    expected = [0.25, 0.5, 0.75, 1.0, 0.882843, 0.6, 0.317157, 0.2]
    assert rates(8, 4, floor=0.2) == pytest.approx(expected, abs=1e-6)


def test_no_jump_where_warmup_ends() -> None:
    values = rates(1000, 100)
    assert max(abs(b - a) for a, b in pairwise(values)) <= 0.01 + 1e-12


def test_first_step_moves_and_last_has_the_floor() -> None:
    values = rates(50, 10)
    assert values[0] == pytest.approx(0.1)
    assert values[-1] == pytest.approx(0.1)
    assert max(values) == values[9] == 1.0


def test_without_warmup_and_beyond_the_end() -> None:
    assert rates(2, 0)[0] == pytest.approx(0.55)
    after = learning_rate(99, lr=1.0, warmup_steps=2, total_steps=10, min_lr_ratio=0.1)
    assert after == pytest.approx(0.1)


def test_a_run_shorter_than_its_warmup_only_warms_up() -> None:
    values = [
        learning_rate(s, lr=1.0, warmup_steps=10, total_steps=3, min_lr_ratio=0.1) for s in range(3)
    ]
    assert values == pytest.approx([0.1, 0.2, 0.3])


def test_warmup_from_ratio_steps_or_default() -> None:
    assert warmup_steps(Schedule(warmup_ratio=0.1), 400) == 40
    assert warmup_steps(Schedule(warmup_steps=7), 400) == 7
    assert warmup_steps(Schedule(), 400) == 20
    assert rate_at(0, 2.0, Schedule(warmup_steps=4), 100) == 0.5
