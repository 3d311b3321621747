"""Adapters on Ray and DeepSpeed against peft in a plain PyTorch loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raysft.train.objectives.dpo import dpo
from tests.ray import pair_reference
from tests.ray.conftest import Groups, steps_of, tiny_config
from tests.ray.reference import five_steps

RANK = "adapter.rank=4"
# What peft is told, and our keys for the same.
VARIANTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "lora": ({}, []),
    "dora": ({"use_dora": True}, ["adapter.variant=dora"]),
    "rslora": ({"use_rslora": True}, ["adapter.variant=rslora"]),
    "attention alone": (
        {"target_modules": ["c_attn", "attn.c_proj"], "lora_alpha": 16},
        ['adapter.target_modules=["c_attn", "attn.c_proj"]', "adapter.alpha=16"],
    ),
}


def with_peft(**options: Any) -> Callable[[Any], Any]:
    from peft import LoraConfig, get_peft_model

    usual = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}

    def adapted(model: Any) -> Any:
        torch.manual_seed(0)  # run.seed
        return get_peft_model(model, LoraConfig(**{**usual, **options, "fan_in_fan_out": True}))

    return adapted


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> dict[str, Any]:
    records = tiny_model.parent / "records.json"
    return {
        name: five_steps(tiny_model, records, prepares=with_peft(**options))
        for name, (options, _) in VARIANTS.items()
    }


LAYOUTS = {
    "1 worker, packs of 128": (1, ["batch.tokens_per_micro_batch=128"]),
    "1 worker, padded": (1, ["batch.packing=false", "batch.micro_batch_size=2"]),
    "2 workers, packs of 128": (2, ["batch.tokens_per_micro_batch=128"]),
}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradient_norms_equal_peft_in_plain_pytorch(
    tiny_model: Path, tmp_path: Path, groups: Groups, expected: Any, layout: str, stage: int
) -> None:
    compare(tiny_model, tmp_path, groups, expected, "lora", layout, stage)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "lora"])
def test_its_variants_equal_peft(
    tiny_model: Path, tmp_path: Path, groups: Groups, expected: Any, variant: str, stage: int
) -> None:
    compare(tiny_model, tmp_path, groups, expected, variant, "2 workers, packs of 128", stage)


RECOMPUTING = ["model.activation_checkpointing=true"]
MOVED = ["engine.offload_optimizer=true", "engine.offload_params=true"]


@pytest.mark.parametrize("variant", ["lora", "dora"])
@pytest.mark.parametrize(("stage", "more"), [(1, []), (3, []), (3, MOVED)])
def test_recomputed_activations_change_nothing(
    tiny_model: Path,
    tmp_path: Path,
    groups: Groups,
    expected: Any,
    variant: str,
    stage: int,
    more: list[str],
) -> None:
    layout = "2 workers, packs of 128"
    compare(tiny_model, tmp_path, groups, expected, variant, layout, stage, *RECOMPUTING, *more)


def compare(
    tiny_model: Path,
    folder: Path,
    groups: Groups,
    expected: Any,
    variant: str,
    layout: str,
    stage: int,
    *more: str,
) -> None:
    workers, overrides = LAYOUTS[layout]
    config = tiny_config(
        tiny_model, RANK, f"scaling.workers={workers}", f"engine.zero_stage={stage}",
        *overrides, *VARIANTS[variant][1], *more,
    )  # fmt: skip
    _, events, _ = groups.fit_in(folder, config)
    steps = steps_of(events)
    losses, norms, _ = expected[variant]
    assert losses[-1] < losses[0] - 0.02, "it learns too little to show anything"
    assert [step["loss"] for step in steps] == pytest.approx(losses, abs=1e-4)
    assert [step["grad_norm"] for step in steps] == pytest.approx(norms, abs=1e-4)


@pytest.mark.parametrize(("workers", "stage"), [(1, 1), (2, 3)])
def test_dpo_equals_peft_in_plain_pytorch(
    tiny_model: Path, tmp_path: Path, groups: Groups, workers: int, stage: int
) -> None:
    """Its reference is the model without the adapter."""
    pairs = pair_reference.write_pairs(tiny_model.parent / "records.json")
    losses, norms, _ = pair_reference.five_steps(tiny_model, pairs, "dpo", with_peft())
    config = tiny_config(
        tiny_model, RANK, f"data.path={pairs}", f"scaling.workers={workers}",
        f"engine.zero_stage={stage}", "dpo.nll_weight=0", "batch.tokens_per_micro_batch=256",
    )  # fmt: skip
    _, events, _ = groups.fit_in(tmp_path, config, dpo(config.dpo))
    steps = steps_of(events)
    assert abs(losses[-1] - losses[0]) > 3e-3, "it learns too little to show anything"
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=1e-5, abs=1e-4)
    assert [step["grad_norm"] for step in steps] == pytest.approx(norms, rel=1e-4, abs=1e-4)
    assert (steps[0]["reward_margin"], steps[0]["kl"]) == pytest.approx((0.0, 0.0), abs=1e-4)
