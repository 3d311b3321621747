"""Training on Ray and DeepSpeed against a plain PyTorch loop."""

from pathlib import Path
from typing import Any

import pytest

from tests.ray.conftest import Groups, steps_of, tiny_config
from tests.ray.reference import five_steps


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> Any:
    return five_steps(tiny_model, tiny_model.parent / "records.json")


# Workers, and how a step's 8 records (about 240 tokens) are laid out.
LAYOUTS = {
    "1x8x1": (1, ["batch.packing=false", "batch.micro_batch_size=8"]),
    "1x2x4": (1, ["batch.packing=false", "batch.micro_batch_size=2"]),
    "1 worker, packs of 128": (1, ["batch.tokens_per_micro_batch=128"]),
    "2x2x2": (2, ["batch.packing=false", "batch.micro_batch_size=2"]),
    "2 workers, a pack each": (2, ["batch.tokens_per_micro_batch=256"]),
    "2 workers, packs of 128": (2, ["batch.tokens_per_micro_batch=128"]),
}


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_losses_and_gradient_norms_equal_plain_pytorch(
    tiny_model: Path, tmp_path: Path, groups: Groups, expected: Any, layout: str, stage: int
) -> None:
    workers, overrides = LAYOUTS[layout]
    config = tiny_config(
        tiny_model, f"scaling.workers={workers}", f"engine.zero_stage={stage}", *overrides
    )
    _, events, _ = groups.fit_in(tmp_path, config)
    steps = steps_of(events)
    losses, norms, _ = expected
    assert [step["loss"] for step in steps] == pytest.approx(losses, abs=1e-4)
    assert [step["grad_norm"] for step in steps] == pytest.approx(norms, abs=1e-4)
    assert any(norm > 1.0 for norm in norms), "no step was clipped: the test shows too little"
    assert sum(step["clipped_steps"] for step in steps) == sum(norm > 1.0 for norm in norms)


@pytest.fixture(scope="module")
def expected_of_weighted_prompts(tiny_model: Path) -> Any:
    return five_steps(tiny_model, tiny_model.parent / "records.json", prompt_weight=0.5)


WEIGHTED = ("1x2x4", "1 worker, packs of 128", "2x2x2", "2 workers, packs of 128")


@pytest.mark.parametrize("layout", WEIGHTED)
def test_weighted_prompts_equal_plain_pytorch(
    tiny_model: Path,
    tmp_path: Path,
    groups: Groups,
    expected: Any,
    expected_of_weighted_prompts: Any,
    layout: str,
) -> None:
    workers, overrides = LAYOUTS[layout]
    weight = "data.prompt_loss_weight=0.5"
    config = tiny_config(tiny_model, f"scaling.workers={workers}", weight, *overrides)
    _, events, _ = groups.fit_in(tmp_path, config)
    steps = steps_of(events)
    losses, norms, _ = expected_of_weighted_prompts
    assert abs(norms[0] - expected[1][0]) > 1e-2, "the weight changes nothing: it shows too little"
    assert [step["loss"] for step in steps] == pytest.approx(losses, abs=1e-4)
    assert [step["grad_norm"] for step in steps] == pytest.approx(norms, abs=1e-4)
