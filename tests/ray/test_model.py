"""Models under ZeRO-3: initialised right, and held by no rank as a whole."""

from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raysft.config.schema import Config
from raysft.driver import worker_environment
from raysft.train.engine import deepspeed_config
from raysft.train.model import load_model, load_model_config, load_tokenizer
from tests.ray.conftest import tiny_config

pytestmark = pytest.mark.usefixtures("cluster")


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """In a worker: elements this rank holds, elements in all, and the spread of each weight."""
    import deepspeed

    from raysft.train.worker import skip_inference_op

    config: Config = options["config"]
    skip_inference_op(deepspeed)
    deepspeed.init_distributed(dist_backend="gloo")
    model = load_model(config, options["hf_config"], deepspeed_config(config))
    held = sum(parameter.numel() for parameter in model.parameters())
    spread = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            spread[name] = (parameter.float().mean().item(), parameter.float().std().item())
    ds_numel = sum(parameter.ds_numel for parameter in model.parameters())
    ray.train.report({})
    return {"held": held, "all": ds_numel, "spread": spread}


def run(config: Config, folder: Path) -> dict[str, Any]:
    hf_config = load_model_config(config, load_tokenizer(config))
    trainer = TorchTrainer(
        measure,
        train_loop_config={"config": config, "hf_config": hf_config},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            storage_path=str(folder),
            worker_runtime_env={"env_vars": worker_environment(config)},
        ),
    )
    result: dict[str, Any] = trainer.fit().return_value
    return result


def test_from_scratch(tiny_model: Path, tmp_path: Path) -> None:
    """GPT-2's initialisation: N(0, 0.02), residual projections divided by sqrt(2 n_layer)."""
    config = tiny_config(
        tiny_model,
        "model.init=scratch",
        f"model.tokenizer={tiny_model}",
        "model.shape={n_layer = 2, n_embd = 128, n_head = 2, n_positions = 128}",
    )
    found = run(config, tmp_path)
    assert found["held"] == 0
    assert found["all"] > 400_000
    for name, (mean, std) in found["spread"].items():
        if name.endswith("bias"):
            assert (mean, std) == (0.0, 0.0)
        elif ".ln_" in name:
            assert (mean, std) == (1.0, 0.0)
        else:
            expected = 0.01 if name.endswith("c_proj.weight") else 0.02
            assert std == pytest.approx(expected, rel=0.05), name


def test_pretrained(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    found = run(tiny_config(tiny_model), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert found["held"] == 0
    for name, parameter in plain.named_parameters():
        expected = (parameter.mean().item(), parameter.std().item())
        assert found["spread"][name] == pytest.approx(expected, abs=1e-7)
