"""Learning from pairs on Ray and DeepSpeed against a plain PyTorch loop."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from raysft.runs import rundir
from raysft.train.objectives.dpo import dpo
from raysft.train.objectives.reward import reward
from tests.ray.conftest import Groups, steps_of, tiny_config
from tests.ray.pair_reference import five_steps, write_pairs


@pytest.fixture(scope="module")
def pairs(tiny_model: Path) -> Path:
    return write_pairs(tiny_model.parent / "records.json")


@pytest.fixture(scope="module")
def expected(tiny_model: Path, pairs: Path) -> Any:
    return cache(lambda kind: five_steps(tiny_model, pairs, kind))


LOSSES = {
    "dpo": ["dpo.nll_weight=0"],
    "dpo with NLL": [],
    "smoothed": ["dpo.nll_weight=0", "dpo.label_smoothing=0.1"],
    "ipo": ["dpo.loss=ipo", "dpo.nll_weight=0"],
}
# Workers, and how a step's 8 pairs (about 480 tokens) are laid out; accumulation 1 x 8 to 8 x 1.
LAYOUTS = {
    "1x8x1": (1, ["batch.packing=false", "batch.micro_batch_size=8"]),
    "1x4x2": (1, ["batch.packing=false", "batch.micro_batch_size=4"]),
    "1x1x8": (1, ["batch.packing=false", "batch.micro_batch_size=1"]),
    "1 worker, a pack": (1, ["batch.tokens_per_micro_batch=1024"]),
    "1 worker, packs of 256": (1, ["batch.tokens_per_micro_batch=256"]),
    "2x2x2": (2, ["batch.packing=false", "batch.micro_batch_size=2"]),
    "2 workers, packs of 256": (2, ["batch.tokens_per_micro_batch=256"]),
}
# Every layout, stage and loss is met; not every combination of them.
CASES = [
    *(("dpo with NLL", layout, 3) for layout in LAYOUTS),
    *(("dpo with NLL", layout, 0) for layout in ("1x8x1", "2x2x2", "2 workers, packs of 256")),
    *(("dpo", layout, 1) for layout in ("1x4x2", "1x1x8", "2 workers, packs of 256")),
    ("ipo", "1 worker, packs of 256", 3),
    ("ipo", "2x2x2", 0),
    ("smoothed", "2 workers, packs of 256", 1),
]
CASES.sort(key=lambda case: LAYOUTS[case[1]][0])


@pytest.mark.parametrize(("loss", "layout", "stage"), CASES)
def test_dpo_equals_plain_pytorch(
    tiny_model: Path, pairs: Path, tmp_path: Path, groups: Groups, expected: Any,
    loss: str, layout: str, stage: int,
) -> None:  # fmt: skip
    workers, overrides = LAYOUTS[layout]
    config = tiny_config(
        tiny_model, f"data.path={pairs}", f"scaling.workers={workers}",
        f"engine.zero_stage={stage}", *LOSSES[loss], *overrides,
    )  # fmt: skip
    _, events, _ = groups.fit_in(tmp_path, config, dpo(config.dpo))
    steps = steps_of(events)
    losses, norms, _ = expected(loss)
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=1e-5, abs=1e-4)
    assert [step["grad_norm"] for step in steps] == pytest.approx(norms, rel=1e-4, abs=1e-4)
    first = steps[0]
    if loss != "ipo":
        assert first["pair_loss"] == pytest.approx(math.log(2), abs=1e-6)
    if loss == "dpo":
        assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["reward_margin"], first["kl"]) == pytest.approx((0.0, 0.0), abs=1e-4)
    with np.load(tmp_path / rundir.REFERENCE) as stored:
        assert stored["train"].shape == (58, 2)
        assert stored["heldout"].shape == (6, 2)


REWARD_CASES = [
    ("1x8x1", 0), ("1x4x2", 3), ("1x1x8", 1), ("1 worker, packs of 256", 3), ("2x2x2", 1),
    ("2 workers, packs of 256", 0), ("2 workers, packs of 256", 3),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "stage"), REWARD_CASES)
def test_reward_equals_plain_pytorch(
    tiny_model: Path, pairs: Path, tmp_path: Path, groups: Groups, expected: Any,
    layout: str, stage: int,
) -> None:  # fmt: skip
    """With margins. The head is drawn alike at all stages, and what is exported is what was
    trained: transformers has scored a padded batch as the engine does, or the run would fail."""
    workers, overrides = LAYOUTS[layout]
    config = tiny_config(
        tiny_model, f"data.path={pairs}", f"scaling.workers={workers}",
        f"engine.zero_stage={stage}", "reward_model.center=0.05",
        "reward_model.margins=true", *overrides,
    )  # fmt: skip
    result, events, _ = groups.fit_in(tmp_path, config, reward(config.reward_model))
    steps = steps_of(events)
    losses, norms, accuracies = expected("reward")
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=1e-4, abs=1e-4)
    assert [step["grad_norm"] for step in steps] == pytest.approx(norms, rel=1e-4, abs=1e-4)
    assert [step["accuracy"] for step in steps] == accuracies  # whatever the layout
    assert 0 < result.totals["export_logit_difference"] < 1e-4
    assert 0 <= result.totals["measures_last"]["eval_accuracy"] <= 1
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / rundir.MODEL)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id not in (None, model.config.eos_token_id)
