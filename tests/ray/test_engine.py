"""Precisions, stages, offload and checkpointing of activations, each a real short run."""

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from raysft.runs import snapshot
from tests.ray.conftest import CPU_MULTIPLIES_FP16, Groups, fit_in, steps_of, tiny_config

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def plain(
    tiny_model: Path, groups: Groups, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """fp32, ZeRO-3, two workers: test_parity holds this one against plain PyTorch."""
    config = tiny_config(tiny_model, "scaling.workers=2")
    _, events, _ = groups.fit_in(tmp_path_factory.mktemp("plain"), config)
    return steps_of(events)


VARIANTS = {
    "stage 1, bf16, bf16 products, accumulation": (
        [
            "engine.zero_stage=1",
            "engine.precision=bf16",
            "engine.cpu_products=bf16",
            "batch.tokens_per_micro_batch=128",
        ],
        0.03,
    ),
    "stage 3, bf16, fp32 products, accumulation": (
        [
            "engine.precision=bf16",
            "engine.cpu_products=fp32",
            "batch.tokens_per_micro_batch=128",
        ],
        0.03,
    ),
    "activation checkpointing, packs": (
        ["model.activation_checkpointing=true", "batch.tokens_per_micro_batch=128"],
        1e-4,
    ),
    "stage 2, packs": (["engine.zero_stage=2", "batch.tokens_per_micro_batch=128"], 1e-4),
    "stage 2, fp16": (["engine.zero_stage=2", "engine.precision=fp16"], 0.01),
    "everything offloaded, activation checkpointing, eager attention": (
        [
            "engine.offload_optimizer=true",
            "engine.offload_params=true",
            "model.activation_checkpointing=true",
            "model.attention=eager",
            "batch.packing=false",
        ],
        1e-4,
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_agree_with_fp32_zero_3(
    tiny_model: Path, tmp_path: Path, groups: Groups, plain: list[dict[str, Any]], name: str
) -> None:
    overrides, tolerance = VARIANTS[name]
    if "fp16" in name and not CPU_MULTIPLIES_FP16:
        pytest.skip("this CPU cannot multiply fp16")
    config = tiny_config(tiny_model, "scaling.workers=2", *overrides)
    _, events, _ = groups.fit_in(tmp_path, config)
    for found, wanted in zip(steps_of(events), plain, strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], abs=tolerance)
        assert found["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=10 * tolerance)
        assert found["skipped_steps"] == 0


@pytest.mark.parametrize("stage", [1, 3])
def test_a_checkpoint_in_bf16_holds_the_model_that_is_exported(
    tiny_model: Path, tmp_path: Path, stage: int
) -> None:
    """With accumulation, for which stage 1 has files of a kind of its own."""
    from transformers import AutoModelForCausalLM

    from raysft.runs import rundir
    from raysft.train.checkpoint.export import export_checkpoint, read_weights

    base = shutil.copytree(tiny_model.parent, tmp_path / "base") / "model"
    penalty = {"repetition_penalty": 1.5, "eos_token_id": 0}  # of the base model's settings
    (base / "generation_config.json").write_text(json.dumps(penalty))
    settings = (f"engine.zero_stage={stage}", "engine.precision=bf16", "scaling.workers=1")
    config = tiny_config(
        base, *settings, "run.max_steps=2", "checkpoint.every_steps=2",
        "batch.tokens_per_micro_batch=128",
    )  # fmt: skip
    fit_in(tmp_path, config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / rundir.MODEL)
    found = read_weights(snapshot.checkpoints(tmp_path)[-1])
    for name, parameter in model.named_parameters():
        assert torch.equal(found[name].bfloat16(), parameter), name
    spec = {"verb": "train", "config": config.model_dump(mode="json"), "stamp": {"utc": ""}}
    rundir.write_json(tmp_path / rundir.RUN, spec)
    exported = export_checkpoint(tmp_path, tmp_path / "exported")
    trained = tmp_path / rundir.MODEL
    written = [(x / "generation_config.json").read_text() for x in (exported, trained)]
    found, wanted = map(json.loads, written)
    assert found == wanted
    assert found["repetition_penalty"] == 1.5
    umask = os.umask(0)
    os.umask(umask)
    for path in (*exported.iterdir(), *trained.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path
