"""Models under ZeRO-3: initialised right, and held by no rank as a whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from transformers import AutoModelForCausalLM

from raysft.config.deepspeed import deepspeed_config
from raysft.model.load import load_model, load_model_config, load_template
from raysft.runtime.connect import worker_environment
from tests.ray.conftest import tiny_config

pytestmark = pytest.mark.usefixtures("cluster")


def measure(options: dict[str, Any]) -> list[dict[str, Any]]:
    """In a worker, for each config: elements this rank holds and in all, mean and std by name."""
    import deepspeed

    from raysft.train.engine import skip_inference_op

    skip_inference_op(deepspeed)
    deepspeed.init_distributed(dist_backend="gloo")
    results = []
    for config, hf_config in options["models"]:
        model = load_model(config, hf_config, deepspeed_config(config), hf_config.vocab_size)
        spread = {}
        for name, parameter in model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                spread[name] = (parameter.float().mean().item(), parameter.float().std().item())
        held = sum(parameter.numel() for parameter in model.parameters())
        in_all = sum(parameter.ds_numel for parameter in model.parameters())
        results.append({"held": held, "all": in_all, "spread": spread})
    return results


def test_scratch_and_pretrained(tiny_model: Path, tmp_path: Path) -> None:
    """Scratch is GPT-2's own: N(0, 0.02), residual projections divided by sqrt(2 n_layer)."""
    pretrained = tiny_config(tiny_model)
    scratch = tiny_config(
        tiny_model,
        "model.init=scratch",
        f"model.tokenizer={tiny_model}",
        "model.shape={n_layer = 2, n_embd = 128, n_head = 2, n_positions = 128}",
    )
    models = [(c, load_model_config(c, load_template(c))) for c in (scratch, pretrained)]
    trainer = TorchTrainer(
        measure,
        train_loop_config={"models": models},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            storage_path=str(tmp_path),
            worker_runtime_env={"env_vars": worker_environment(scratch)},
        ),
    )
    from_scratch, from_folder = trainer.fit().return_value
    assert from_scratch["held"] == from_folder["held"] == 0
    assert from_scratch["all"] > 400_000
    for name, (mean, std) in from_scratch["spread"].items():
        if name.endswith("bias"):
            assert (mean, std) == (0.0, 0.0)
        elif ".ln_" in name:
            assert (mean, std) == (1.0, 0.0)
        else:
            expected = 0.01 if name.endswith("c_proj.weight") else 0.02
            assert std == pytest.approx(expected, rel=0.05), name

    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for name, parameter in plain.named_parameters():
        wanted = (parameter.mean().item(), parameter.std().item())
        assert from_folder["spread"][name] == pytest.approx(wanted, abs=1e-7)
