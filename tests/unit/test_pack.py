"""Packs of records, and that a pack computes what its records compute alone."""

import random
from inspect import signature
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    masking_utils,
)

from raysft.data.batch import Batch, pack, pad
from raysft.data.dataset import TokenDataset
from raysft.data.pack import pack_for_ranks, packed_bins
from raysft.errors import UserError
from raysft.model import attention
from raysft.model.attention import PACKED, register
from raysft.train.loss import supervised_nll, token_nll

VOCABULARY = 61
SHAPES = {
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_layer=2, n_embd=32, n_head=4, n_positions=64, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    ),
    "llama": LlamaConfig(  # grouped queries, rotary positions
        vocab_size=VOCABULARY, num_hidden_layers=2, hidden_size=32, intermediate_size=48,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    ),
    "mistral": MistralConfig(  # a window that some of the records are longer than
        vocab_size=VOCABULARY, num_hidden_layers=2, hidden_size=32, intermediate_size=48,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, sliding_window=6,
    ),
    "gemma 2": Gemma2Config(  # soft caps of scores and logits, and windows in every other layer
        vocab_size=VOCABULARY, num_hidden_layers=2, hidden_size=32, intermediate_size=48,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        sliding_window=6, attn_logit_softcapping=1.0, final_logit_softcapping=1.0,
    ),
    "gpt-oss": GptOssConfig(  # sinks
        vocab_size=VOCABULARY, num_hidden_layers=2, hidden_size=32, intermediate_size=48,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        num_local_experts=2, num_experts_per_tok=1, sliding_window=6, pad_token_id=None,
    ),
}  # fmt: skip


@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=60),
    world_size=st.integers(1, 5),
    capacity=st.integers(64, 256),
)
def test_packs_hold_every_record_once_and_are_alike(
    lengths: list[int], world_size: int, capacity: int
) -> None:
    array = np.array(lengths)
    steps = pack_for_ranks(array, capacity, world_size)
    assert all(len(packs) == world_size for packs in steps)
    flat = [record for packs in steps for records in packs for record in records]
    assert sorted(flat) == list(range(len(lengths)))
    sums = [sum(lengths[r] for r in records) for packs in steps for records in packs]
    assert max(sums) <= capacity
    assert pack_for_ranks(array, capacity, world_size) == steps
    # No pack has more work than the least by more than one record.
    assert max(sums) - min(sums) <= 2 * max(lengths)


def test_real_lengths_fill_the_packs() -> None:
    """About 140 tokens a record: packs are nearly full, and two ranks have nearly equal work."""
    source = random.Random(0)
    lengths = np.array([min(1024, int(source.lognormvariate(4.7, 0.7)) + 8) for _ in range(256)])
    steps = pack_for_ranks(lengths, 2048, 2)
    assert len(steps) * 2 * 2048 < 1.15 * lengths.sum() + 2 * 2048
    shares = [sum(lengths[r] for packs in steps for r in packs[rank]) for rank in (0, 1)]
    assert max(shares) / min(shares) < 1.02


@pytest.mark.parametrize("seed", range(20))
def test_packed_bins_against_packing_record_by_record(seed: int) -> None:
    source = random.Random(seed)
    capacity = source.choice([10, 64, 512])
    lengths = [source.randint(1, source.choice([5, capacity])) for _ in range(300)]
    room: list[int] = []
    for length in sorted((min(n, capacity) for n in lengths), reverse=True):
        fitting = [index for index, left in enumerate(room) if left >= length]
        if fitting:
            room[min(fitting, key=lambda index: room[index])] -= length
        else:
            room.append(capacity - length)
    found = packed_bins(np.minimum(np.array(lengths), capacity), capacity)
    assert found == len(room)


@pytest.fixture(scope="module")
def records() -> TokenDataset:
    """Five records; their prompts are not trained."""
    lengths = np.array([5, 17, 2, 30, 9])
    supervised = np.array([3, 8, 1, 20, 9])
    ids = np.random.default_rng(0).integers(0, VOCABULARY, lengths.sum()).astype(np.int32)
    mask = np.concatenate([np.arange(n) >= n - s for n, s in zip(lengths, supervised, strict=True)])
    starts = np.cumsum(lengths) - lengths
    return TokenDataset(ids, mask, starts, lengths, supervised, np.zeros(5, np.uint16))


@pytest.fixture(scope="module", params=SHAPES)
def models(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The same weights, with attention for packs and with transformers' own."""
    register()
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(SHAPES[request.param], attn_implementation="eager")
    packed = AutoModelForCausalLM.from_config(SHAPES[request.param], attn_implementation=PACKED)
    packed.load_state_dict(plain.state_dict())
    return packed.train(), plain.train()


def loss_and_gradients(model: Any, batches: list[Batch]) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        nll = supervised_nll(model, batch)
        nll.backward()
        total += nll.item()
    return total, [p.grad.clone() for p in model.parameters()]


def test_packed_equals_padded_equals_alone(models: tuple[Any, Any], records: TokenDataset) -> None:
    packed, plain = models
    everything = np.arange(5)
    alone = [pad(records, np.array([index])) for index in everything]
    wanted, wanted_grads = loss_and_gradients(plain, alone)
    ways = [
        (packed, [pack(records, everything)]),
        (packed, [pack(records, np.array([3, 0])), pack(records, np.array([4, 1, 2]))]),
        (plain, [pad(records, everything)]),
    ]
    for model, batches in ways:
        found, grads = loss_and_gradients(model, batches)
        assert found == pytest.approx(wanted, rel=1e-5)
        for ours, expected in zip(grads, wanted_grads, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_neighbour_changes_no_token(models: tuple[Any, Any], records: TokenDataset) -> None:
    packed, _ = models
    with torch.no_grad():
        both = pack(records, np.array([1, 3]))
        alone = pack(records, np.array([3]))
        nll = token_nll(packed, both, both.scored)
        torch.testing.assert_close(
            nll[-29:], token_nll(packed, alone, alone.scored), rtol=1e-5, atol=1e-5
        )


def plain_varlen(knows_groups: bool) -> Any:
    """torch's varlen_attn on a CPU: its signature, a loop over the records, scores kept."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None,
        window_size: tuple[int, int],
        **options: Any,
    ) -> Tensor:
        assert options.get("enable_gqa", False) == (knows_groups and key.shape[1] != query.shape[1])
        assert cu_seq_q.dtype == torch.int32
        assert cu_seq_q is cu_seq_k
        assert window_size[1] == 0  # causal
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        outputs = []
        for begin, end in pairwise(cu_seq_q.tolist()):
            assert end - begin <= max_q == max_k
            q, k, v = (x[begin:end].transpose(0, 1) for x in (query, key, value))
            scores = q @ k.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
            age = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
            left = window_size[0] if window_size[0] >= 0 else end
            scores = scores.masked_fill((age < 0) | (age > left), float("-inf"))
            outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
        return torch.cat(outputs)

    return attend, knows_groups


@pytest.mark.parametrize("knows_groups", [False, True])
def test_one_call_for_all_records_equals_one_call_a_record(
    models: tuple[Any, Any],
    records: TokenDataset,
    knows_groups: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a GPU does, with a stand-in for its kernel."""
    packed, _ = models
    batches = [pack(records, np.array([3, 0])), pack(records, np.array([4, 1, 2]))]
    wanted, wanted_grads = loss_and_gradients(packed, batches)
    monkeypatch.setattr(attention, "has_varlen", lambda _: True)
    monkeypatch.setattr(attention, "varlen_kernel", lambda: plain_varlen(knows_groups))
    found, grads = loss_and_gradients(packed, batches)
    assert found == pytest.approx(wanted, rel=1e-5)
    for ours, expected in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_torch_has_the_kernel_that_the_stand_in_stands_for() -> None:
    wanted = set(signature(plain_varlen(True)[0]).parameters) - {"options"}
    assert wanted <= set(signature(attention.varlen_kernel()[0]).parameters)


def test_attention_that_is_not_computed_is_refused() -> None:
    x = torch.zeros(1, 1, 4, 8)
    with pytest.raises(UserError, match="Linear needs position_bias"):
        attention.packed_attention(torch.nn.Linear(1, 1), x, x, x, None, position_bias=x)


def test_no_mask_is_made_and_no_packed_rows_are_looked_for(
    models: tuple[Any, Any], records: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask the device whether positions restart, and a GPU be waited for."""

    def look(*_: Any, **__: Any) -> None:
        raise AssertionError("looked for")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", look)
    supervised_nll(models[0], pack(records, np.arange(5)))
