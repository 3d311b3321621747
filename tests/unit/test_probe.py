"""The try before the first step, on models that are computed otherwise when laid out together."""

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    DogeConfig,
    GPT2Config,
    Llama4TextConfig,
    MistralConfig,
    NemotronConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedConfig,
)

from raysft.config.load import load_config
from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.model.attention import PACKED
from raysft.model.load import load_model
from raysft.runs import events
from raysft.train.probe import exact_layout
from tests.model_types import VOCABULARY, Engine

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": None,
}  # fmt: skip
GPT2 = GPT2Config(vocab_size=VOCABULARY, n_layer=2, n_embd=32, n_head=4, n_positions=128)


def start(hf_config: PreTrainedConfig, precision: str = "fp32") -> tuple[Config, Engine]:
    """With weights as they are initialised, where little is to be seen of what attention does."""
    config = load_config(
        "gpt2-tiny-cpu",
        [f"engine.precision={precision}", "engine.zero_stage=1", "batch.seq_len=64",
         "batch.tokens_per_micro_batch=256"],
    )  # fmt: skip
    return config, Engine(load_model(config, hf_config, {}, VOCABULARY))


def layout(config: Config, engine: Engine) -> tuple[Config, list[str]]:
    told: list[events.Event] = []
    found = exact_layout(config, engine, VOCABULARY, 64, told.append)
    return found, [event.message for event in told if isinstance(event, events.Warning)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "hf_config", [GPT2, MistralConfig(**SIZES, sliding_window=40)], ids=["gpt2", "mistral"]
)
def test_packs_that_are_exact_stay(hf_config: PreTrainedConfig, precision: str) -> None:
    config, engine = start(hf_config, precision)
    before = torch.random.get_rng_state()
    assert layout(config, engine) == (config, [])
    assert engine.module.config._attn_implementation == PACKED
    assert engine.module.training
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in engine.module.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("hf_config", "fault"),
    [
        (NemotronConfig(**SIZES), "depends on tokens that it must not see"),
        (DogeConfig(**SIZES), "its forward pass ends in ValueError: packed records take no"),
        (PhimoeConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1, sliding_window=40),
         "does not apply its sliding_window of 40 tokens"),
        (Llama4TextConfig(**SIZES, head_dim=8, intermediate_size_mlp=48, num_local_experts=2,
                          attention_chunk_size=40),
         "does not apply its attention_chunk_size of 40 tokens"),
    ],
    ids=["nemotron", "doge", "phimoe", "llama4"],
)  # fmt: skip
def test_records_are_padded_where_packs_are_not_exact(
    hf_config: PreTrainedConfig, fault: str, precision: str
) -> None:
    config, engine = start(hf_config, precision)
    found, (message,) = layout(config, engine)
    assert not found.batch.packing
    assert found.batch.micro_batch_size == 4
    assert fault in message
    assert "padded instead, 4 in a micro-batch" in message
    assert engine.module.config._attn_implementation in ("sdpa", "eager")


def test_a_window_that_no_record_reaches_packs() -> None:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    config, engine = start(PhimoeConfig(**SIZES, **experts, sliding_window=64))
    assert layout(config, engine) == (config, [])


def test_a_rotation_that_goes_by_the_longest_record_is_told() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4}  # fmt: skip
    hf_config = Phi3Config(**SIZES, rope_parameters=rope, original_max_position_embeddings=48)
    config, engine = start(hf_config)
    _, (message,) = layout(config, engine)
    assert "records reach 64 tokens, and past 48" in message
    assert "batch.seq_len = 48" in message


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    config, engine = start(BertConfig(**SIZES | {"pad_token_id": 0}))
    with pytest.raises(UserError, match=r"BertLMHeadModel .*raysft cannot train it.*must not see"):
        layout(config, engine)


def test_a_model_that_is_computed_otherwise_is_refused() -> None:
    """As by a fault of ours: here the positions are off by one where they are given."""
    config, engine = start(GPT2)

    def shifted(_module: Any, args: Any, inputs: dict[str, Any]) -> Any:
        mask = inputs.get("attention_mask")
        many = mask is not None and len(mask) > 1
        ids = torch.arange(1, 1 + inputs["input_ids"].shape[1])[None]
        return args, inputs | ({"position_ids": ids} if many else {})

    engine.module.register_forward_pre_hook(shifted, with_kwargs=True)
    padding = config.model_copy(
        update={"batch": config.batch.model_copy(update={"packing": False})}
    )
    with pytest.raises(UserError, match="which rounding does not explain"):
        layout(padding, engine)
