"""Models under ZeRO-3: initialised right, and held by no rank as a whole."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlamaConfig,
)

from raysft.config.deepspeed import deepspeed_config
from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.model.load import load_model, load_model_config, load_template
from raysft.runs.events import Event, Placed, Restart, Warning
from raysft.runtime.connect import worker_environment
from tests.model_types import nested, small_config
from tests.ray.conftest import Groups, fit_in, steps_of, tiny_config

pytestmark = pytest.mark.usefixtures("cluster")


def weights_of(config: Config, hf_config: Any) -> dict[str, str]:
    """The weights a model begins with, by name: a digest of their bytes. It gets two tokens more,
    as by a template."""
    import deepspeed

    model = load_model(config, hf_config, deepspeed_config(config), hf_config.vocab_size + 2)
    found = {}
    for name, parameter in model.named_parameters():
        cut = config.engine.stage == 3
        with deepspeed.zero.GatheredParameters([parameter], enabled=cut):
            whole = parameter.detach().float().numpy().tobytes()
            found[name] = hashlib.sha256(whole).hexdigest()
    return found


def measure(options: dict[str, Any]) -> list[Any]:
    """In a worker: digests of the weights of each stage; then, for each config, elements this rank
    holds and in all, mean and std by name."""
    import deepspeed

    from raysft.train.engine import skip_inference_op

    skip_inference_op(deepspeed)
    deepspeed.init_distributed(dist_backend="gloo")
    seeded = [weights_of(*model) for model in options["stages"]]
    results: list[Any] = [seeded]
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


def with_stage(config: Config, stage: int) -> Config:
    return config.model_copy(
        update={"engine": config.engine.model_copy(update={"zero_stage": stage})}
    )


def with_path(config: Config, path: Path) -> Config:
    update = {"path": str(path), "init": "pretrained"}
    return config.model_copy(update={"model": config.model.model_copy(update=update)})


def test_scratch_and_pretrained(tiny_model: Path, tmp_path: Path) -> None:
    """Scratch is GPT-2's own: N(0, 0.02), residual projections divided by sqrt(2 n_layer), and by
    the seed alone, whatever the stage."""
    pretrained = tiny_config(tiny_model)
    scratch = tiny_config(
        tiny_model,
        "model.init=scratch",
        f"model.tokenizer={tiny_model}",
        "model.shape={n_layer = 2, n_embd = 128, n_head = 2, n_positions = 128}",
    )
    models = [(c, load_model_config(c, load_template(c))) for c in (scratch, pretrained)]
    staged = [with_stage(scratch, stage) for stage in range(4)]
    stages = [(c, load_model_config(c, load_template(c))) for c in staged]
    for_images = tmp_path / "for images"
    hf_config = nested("gemma3")
    AutoModelForImageTextToText.from_config(hf_config).save_pretrained(for_images)
    stages += [(with_path(c, for_images), hf_config.text_config) for c in (staged[1], staged[3])]
    trainer = TorchTrainer(
        measure,
        train_loop_config={"models": models, "stages": stages},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            storage_path=str(tmp_path),
            worker_runtime_env={"env_vars": worker_environment(scratch)},
        ),
    )
    seeded, from_scratch, from_folder = trainer.fit().return_value
    assert len(seeded[0]) == len(set(seeded[0])) > 20
    assert seeded[1] == seeded[0], "stage 1"
    assert seeded[2] == seeded[0], "stage 2"
    assert seeded[3] == seeded[0], "stage 3"
    assert seeded[4] == seeded[5], "the text part of a model for images"
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


def with_tokenizer(folder: Path, tiny_model: Path) -> Path:
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_a_model_that_fails_is_told_after_one_start(tiny_model: Path, tmp_path: Path) -> None:
    """Three heads of keys for four of queries: whatever computes attention refuses them."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 3}
    hf_config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, **heads)
    hf_config.save_pretrained(tmp_path / "model")
    folder = with_tokenizer(tmp_path / "model", tiny_model)
    data = f"data.path={tiny_model.parent / 'records.json'}"
    config = tiny_config(folder, "model.init=scratch", "model.shape=none", data)
    events: list[Event] = []
    with pytest.raises(UserError, match="LlamaForCausalLM is not computed here"):
        fit_in(tmp_path / "run", config, events)
    assert sum(isinstance(event, Placed) for event in events) == 1
    assert not any(isinstance(event, Restart) for event in events)


def test_the_text_of_a_model_for_images_is_trained_and_exported(
    tiny_model: Path, tmp_path: Path, groups: Groups
) -> None:
    hf_config = nested("gemma3", vocab_size=len(AutoTokenizer.from_pretrained(tiny_model)))
    AutoModelForImageTextToText.from_config(hf_config).save_pretrained(tmp_path / "model")
    folder = with_tokenizer(tmp_path / "model", tiny_model)
    config = tiny_config(folder, f"data.path={tiny_model.parent / 'records.json'}")
    result, events, _ = groups.fit_in(tmp_path / "run", config)
    losses = [step["loss"] for step in steps_of(events)]
    assert losses[-1] < losses[0]
    assert result.totals["export_logit_difference"] < 1e-3
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    assert type(exported).__name__ == "Gemma3ForCausalLM"


def test_a_model_that_fails_on_packs_is_trained_on_padded_records(
    tiny_model: Path, tmp_path: Path, groups: Groups
) -> None:
    """Under ZeRO-3, which has gathered parameters when it fails."""
    hf_config = small_config("doge")
    hf_config.vocab_size = len(AutoTokenizer.from_pretrained(tiny_model))
    hf_config.save_pretrained(tmp_path / "model")
    folder = with_tokenizer(tmp_path / "model", tiny_model)
    data = f"data.path={tiny_model.parent / 'records.json'}"
    config = tiny_config(folder, "model.init=scratch", "model.shape=none", data)
    _, events, _ = groups.fit_in(tmp_path / "run", config)
    assert len(steps_of(events)) == 5
    assert any(
        isinstance(e, Warning) and "forward pass ends in ValueError" in e.message for e in events
    )
