"""The blocks of a model: gathered at once under ZeRO-3, and compiled where that is asked for."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from raysft.config.load import load_config
from raysft.data.batch import pack
from raysft.data.dataset import TokenDataset
from raysft.errors import UserError
from raysft.model.attention import PACKED, register
from raysft.train.engine import blocks, compile_blocks, gather_by_block
from raysft.train.loss import supervised_nll

SHAPES = {
    "gpt2": GPT2Config(
        vocab_size=61, n_layer=3, n_embd=32, n_head=4, n_positions=64, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    ),
    "llama": LlamaConfig(
        vocab_size=61, num_hidden_layers=3, hidden_size=32, intermediate_size=48,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    ),
}  # fmt: skip


def model_of(shape: str) -> Any:
    register()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(SHAPES[shape], attn_implementation=PACKED).train()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_blocks_are_found_and_become_leaves(shape: str) -> None:
    model = model_of(shape)
    found = blocks(model)
    assert len(found) == 3
    gather_by_block(model)
    leaves = [module for module in model.modules() if getattr(module, "_z3_leaf", False)]
    assert leaves == found


def test_compiled_blocks_give_equal_losses_and_gradients() -> None:
    """Of packs of two lengths: the second compiles nothing anew that changes the result."""
    lengths = np.array([5, 17, 2, 30])
    ids = np.random.default_rng(0).integers(0, 61, lengths.sum()).astype(np.int32)
    mask, starts = np.ones(len(ids), np.bool_), np.cumsum(lengths) - lengths
    data = TokenDataset(ids, mask, starts, lengths, lengths, np.zeros(4, np.uint16))
    plain = model_of("gpt2")
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled)
    for records in ([0, 1, 2], [3]):
        batch = pack(data, np.array(records))
        for model in (plain, compiled):
            model.zero_grad()
            supervised_nll(model, batch).backward()
        torch.testing.assert_close(supervised_nll(compiled, batch), supervised_nll(plain, batch))
        for ours, wanted in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, wanted.grad, rtol=1e-4, atol=1e-5)


def test_compiling_needs_a_stage_without_hooks() -> None:
    with pytest.raises(UserError, match="compile needs engine"):
        load_config("gpt2-tiny-cpu", ["model.compile=true", "engine.zero_stage=3"])
