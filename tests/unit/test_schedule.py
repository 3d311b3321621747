from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import get_scheduler

from raysft.config.load import load_config
from raysft.config.training import Schedule
from raysft.train.schedule import SHAPES, equation, learning_rate, rate_at, warmup_steps


def rates(total: int, warmup: int, floor: float = 0.1, **others: Any) -> list[float]:
    return [
        learning_rate(
            step,
            lr=1.0,
            warmup_steps=warmup,
            total_steps=total,
            schedule=Schedule(min_lr_ratio=floor, **others),
        )
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
    after = learning_rate(99, lr=1.0, warmup_steps=2, total_steps=10, schedule=Schedule())
    assert after == pytest.approx(0.1)


def test_a_run_shorter_than_its_warmup_only_warms_up() -> None:
    values = [
        learning_rate(s, lr=1.0, warmup_steps=10, total_steps=3, schedule=Schedule())
        for s in range(3)
    ]
    assert values == pytest.approx([0.1, 0.2, 0.3])


def test_warmup_from_ratio_steps_or_default() -> None:
    assert warmup_steps(Schedule(warmup_ratio=0.1), 400) == 40
    assert warmup_steps(Schedule(warmup_steps=7), 400) == 7
    assert warmup_steps(Schedule(), 400) == 20
    assert rate_at(0, 2.0, Schedule(warmup_steps=4), 100) == 0.5


THEIRS: dict[str, tuple[str, dict[str, Any]]] = {  # the names and options of transformers
    "cosine": ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    "linear": ("linear", {}),
    "constant": ("constant_with_warmup", {}),
    "inverse_sqrt": ("inverse_sqrt", {}),
    "wsd": ("warmup_stable_decay", {"num_decay_steps": 25, "decay_type": "1-sqrt"}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_rates_are_those_of_transformers(name: str) -> None:
    """Whose first step has a rate of 0: ours are one ahead."""
    theirs, options = THEIRS[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(
        theirs, optimizer, num_warmup_steps=10, num_training_steps=100,
        scheduler_specific_kwargs=options,
    )  # fmt: skip
    expected = []
    for _ in range(100):
        optimizer.step()
        scheduler.step()
        expected.append(optimizer.param_groups[0]["lr"])
    floor = 0.1 if name == "cosine" else 0.0
    others = {"decay_ratio": 0.25} if name == "wsd" else {}
    assert rates(100, 10, floor, name=name, **others) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_a_schedule_has_no_jump_and_keeps_its_floor(name: str) -> None:
    values = rates(1000, 100, 0.25, name=name)
    assert max(values) == values[99] == 1.0
    assert min(values[99:]) >= 0.25
    steps = [abs(b - a) for a, b in pairwise(values)]
    assert max(steps) <= (0.08 if name == "wsd" else 0.0101)  # whose decay begins steeply
    assert values[-1] == pytest.approx({"constant": 1.0, "inverse_sqrt": 0.1**0.5}.get(name, 0.25))
    for total, warmup in ((1, 0), (3, 10), (5, 5), (2, 1)):
        assert all(0 < rate <= 1 for rate in rates(total, warmup, name=name))


def test_the_plan_says_which() -> None:
    for settings, words in {
        ("schedule.name=linear",): "0 to 0.001 in 2 steps, then linear to 0.0001 = 0.1 x 0.001",
        ("schedule.name=constant",): "0 to 0.001 in 2 steps, then constant",
        ("schedule.name=inverse_sqrt",): (
            "0 to 0.001 in 2 steps, then 1 / sqrt(step), not below 0.0001 = 0.1 x 0.001"
        ),
        ("schedule.name=wsd", "schedule.decay_ratio=0.3"): (
            "0 to 0.001 in 2 steps, then constant, and in the last 0.3 of all steps to "
            "0.0001 = 0.1 x 0.001"
        ),
    }.items():
        sets = ("optim.lr=1e-3", "schedule.warmup_ratio=none", "schedule.warmup_steps=2", *settings)
        assert equation(load_config("gpt2-tiny-cpu", list(sets))) == words
    with pytest.raises(ValidationError, match='decay_ratio is of name = "wsd"'):
        Schedule(decay_ratio=0.1)
