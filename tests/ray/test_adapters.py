"""Adapters on Ray and DeepSpeed against peft in a plain PyTorch loop."""

from pathlib import Path
from typing import Any

import pytest
import torch

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


def plain(tiny_model: Path, options: dict[str, Any]) -> Any:
    """Losses, gradient norms and the trained model of five plain steps with peft."""
    from peft import LoraConfig, get_peft_model

    usual = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    kept = []

    def adapted(model: Any) -> Any:
        torch.manual_seed(0)  # run.seed
        config = LoraConfig(**{**usual, **options, "fan_in_fan_out": True})
        kept.append(get_peft_model(model, config))
        return kept[0]

    losses, norms, _ = five_steps(tiny_model, tiny_model.parent / "records.json", prepares=adapted)
    return losses, norms, kept[0]


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> dict[str, Any]:
    return {name: plain(tiny_model, options) for name, (options, _) in VARIANTS.items()}


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
