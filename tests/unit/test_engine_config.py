"""The DeepSpeed configuration is a pure function of ours."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from raysft.config.deepspeed import deepspeed_config
from raysft.config.load import load_config
from raysft.train.engine import what_fits
from raysft.train.optimizer import make_optimizer


def deepspeed(*overrides: str) -> dict[str, Any]:
    return deepspeed_config(load_config("gpt2-tiny-cpu", overrides))


def test_accumulation_steps_are_counted_or_bounded() -> None:
    """Packs of 512 tokens: 24 records of at most 512 tokens may need a pack each."""
    padded = ("batch.packing=false", "batch.micro_batch_size=2", "batch.global_batch_size=24")
    assert deepspeed(*padded)["gradient_accumulation_steps"] == 6
    packed = ("batch.tokens_per_micro_batch=512", "batch.global_batch_size=24")
    assert deepspeed(*packed)["gradient_accumulation_steps"] == 12
    all_in_one = ("batch.tokens_per_micro_batch=12288", "batch.global_batch_size=24")
    assert deepspeed(*all_in_one)["gradient_accumulation_steps"] == 1


def test_clipping_is_a_number() -> None:
    clipping = deepspeed("optim.max_grad_norm=0.5")["gradient_clipping"]
    assert clipping == 0.5
    assert not isinstance(clipping, bool)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_precision_is_exactly_one(precision: str) -> None:
    config = deepspeed(f"engine.precision={precision}")
    assert config["bf16"]["enabled"] == (precision == "bf16")
    assert config["fp16"]["enabled"] == (precision == "fp16")


def test_half_precision_gradients_accumulate_in_fp32_under_zero() -> None:
    bf16, summed = "engine.precision=bf16", "batch.global_batch_size=128"
    assert deepspeed(bf16, summed)["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in deepspeed(bf16, "batch.tokens_per_micro_batch=32768")
    assert "data_types" not in deepspeed(summed)


def test_offload_and_cpu_buckets() -> None:
    zero = deepspeed("engine.offload_optimizer=true")["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert zero["reduce_bucket_size"] == 5_000_000
    on_gpu = deepspeed("scaling.gpus_per_worker=1", "engine.offload_params=true")
    assert on_gpu["zero_optimization"]["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert "reduce_bucket_size" not in on_gpu["zero_optimization"]


def test_same_config_gives_the_same_dict() -> None:
    assert deepspeed() == deepspeed()


def test_decay_is_for_matrices_only() -> None:
    from torch import nn

    config = load_config("gpt2-tiny-cpu", ["optim.weight_decay=0.1"])
    model = nn.Sequential(nn.Embedding(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer, kernel = make_optimizer(config, model)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert [decay[id(p)] for p in model.parameters()] == [0.1, 0.0, 0.0, 0.1, 0.0]
    assert kernel == "torch AdamW"


def test_adam_couples_its_decay() -> None:
    from torch import nn, optim

    config = load_config("gpt2-tiny-cpu", ["optim.name=adam"])
    optimizer, _ = make_optimizer(config, nn.Linear(2, 2))
    assert type(optimizer) is optim.Adam


def test_nothing_of_deepspeeds_waits_for_the_device_to_time_a_step() -> None:
    assert deepspeed()["timers"] == {"throughput": {"enabled": False}}


def test_a_gpu_that_has_room_for_a_lower_stage_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the memory that the device of the worker has, not by its name."""
    card = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: card)
    large = GPT2Config(n_layer=36, n_embd=1280, n_head=20)
    packs, cuda = "batch.tokens_per_micro_batch=4096", torch.device("cuda")
    settings = [packs, "model.activation_checkpointing=true", "engine.zero_stage=3"]
    (line,) = what_fits(load_config("gpt2-large", settings), large, cuda)
    assert line.startswith("ZeRO-1 A also fits, in ")
    card.total_memory = 8 * 2**30
    (line,) = what_fits(load_config("gpt2-large", settings), large, cuda)
    assert "GiB a worker, and there are 8.0" in line
    assert what_fits(load_config("gpt2-large", settings), LlamaConfig(), cuda) == []
