"""What `bench stability` has workers do: look at Adam's second moment, and train several times."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from raysft.data.dataset import prepare
from raysft.model.load import load_model_config, load_template
from raysft.runs import events
from raysft.runs.events import Event
from raysft.runtime.fit import fit
from raysft.studies.stability.climb import climb
from raysft.train.objectives.sft import SFT
from raysft.train.second_moment import watch_moments
from tests.ray.conftest import Groups, steps_of, tiny_config
from tests.ray.reference import five_steps


@pytest.fixture(scope="module")
def by_hand(tiny_model: Path) -> list[float]:
    """Of each of five updates, some of them clipped."""
    found: list[float] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        squares = []
        for parameter, state in optimizer.state.items():
            second = state["exp_avg_sq"] / (1 - 0.95 ** int(state["step"]))
            assert parameter.grad is not None
            squares.append((parameter.grad**2 / second)[second > 0])
        found.append(float(torch.cat(squares).mean().sqrt()))

    five_steps(tiny_model, tiny_model.parent / "records.json", look=look)
    return found


@pytest.mark.parametrize(("workers", "stage"), [(1, 0), (1, 1), (2, 1), (2, 3)])
def test_the_moment_ratio_equals_plain_pytorch(
    groups: Groups, tmp_path: Path, tiny_model: Path, by_hand: list[float], workers: int, stage: int
) -> None:
    """Whatever part of weights and moments a worker holds."""
    config = tiny_config(tiny_model, f"scaling.workers={workers}", f"engine.zero_stage={stage}")
    watched = replace(SFT, watches=watch_moments)
    _, events, _ = groups.fit_in(tmp_path / "a", config, watched)
    assert [line["moment_ratio"] for line in steps_of(events)] == pytest.approx(by_hand, rel=1e-3)
    # Of several steps, the largest; and looking changes nothing.
    rarely = tiny_config(tiny_model, f"scaling.workers={workers}", f"engine.zero_stage={stage}",
                         "log.every_steps=4")  # fmt: skip
    _, others, _ = groups.fit_in(tmp_path / "b", rarely, watched)
    ratios = [line["moment_ratio"] for line in steps_of(others)]
    assert ratios == pytest.approx([by_hand[0], max(by_hand[1:4]), by_hand[4]], rel=1e-3)
    _, plain, _ = groups.fit_in(tmp_path / "c", config)
    assert [x["loss"] for x in steps_of(plain)] == [x["loss"] for x in steps_of(events)]


def test_a_run_of_a_ladder_is_what_it_is_alone(
    groups: Groups, tmp_path: Path, tiny_model: Path
) -> None:
    """To the bit, whatever ran before it in its workers; and after one that diverged comes none."""
    configs = [
        tiny_config(tiny_model, "scaling.workers=2", f"optim.lr={lr}", "eval.every_steps=1")
        for lr in (1e-3, 2e-3, 1e3, 2e3)
    ]
    _, alone, _ = groups.fit_in(tmp_path / "alone", configs[1])
    groups.close()
    template, told = load_template(configs[0]), []
    data = prepare(configs[0], template)
    lines: list[list[dict[str, Any]]] = []

    def see(event: Event) -> None:
        match event:
            case events.Started():
                lines.append([])
            case events.Metrics():
                lines[-1].append({"step": event.step, **event.values})
            case events.Case():
                told.append(event.result)

    fit(
        configs[0], data.train, data.heldout, load_model_config(configs[0], template),
        template.tokenizer, tmp_path / "ladders", see, exports=False,
        program=partial(climb, [configs, configs[1:2]]),
    )  # fmt: skip
    assert [(one["ladder"], one["end"]["lr"], one["last"]) for one in told] == [
        (0, 1e-3, False), (0, 2e-3, False), (0, 1e3, True), (1, 2e-3, True),
    ]  # fmt: skip
    third = told[2]["end"]
    assert third["why"].startswith(("the held-out loss is", "the training loss is"))
    assert 1 <= third["diverged_step"] <= 5
    compared = ("step", "loss", "grad_norm", "eval_loss")
    first, second, _, again, others = (
        [[line.get(key) for key in compared] for line in found if "loss" in line]
        for found in (*lines, steps_of(alone))
    )
    assert len(second) == 5
    assert second == again == others
    assert [line[1] for line in first] != [line[1] for line in second]
