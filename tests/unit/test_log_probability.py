"""The log-probability of each token, with its gradient, against plain log_softmax."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, CohereConfig, GPT2Config, OPTConfig

from raysft.data.batch import Batch
from raysft.train import head_nll
from raysft.train.head_nll import HeadLogProbability
from raysft.train.loss import token_log_probability
from tests.unit.test_loss import masked

SHAPE = {"vocab_size": 50, "max_position_embeddings": 32, "hidden_size": 16, "num_hidden_layers": 2}
FAMILIES = {
    "gpt2": GPT2Config(vocab_size=50, n_layer=2, n_embd=16, n_head=2, n_positions=32),
    "opt": OPTConfig(**SHAPE, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=16),
    # Its logits are scaled after the head, so that they are not the head's alone.
    "cohere": CohereConfig(
        **SHAPE, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2
    ),
}


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    return masked(ids, lengths=[12, 7, 9], prompts=[5, 2, 8])


def plain(model: Any, batch: Batch) -> torch.Tensor:
    mask = batch.inputs["attention_mask"].long()
    logs = F.log_softmax(model(batch.input_ids, attention_mask=mask).logits[:, :-1].float(), dim=-1)
    found = logs.gather(2, batch.input_ids[:, 1:, None])[:, :, 0]
    return F.pad(found, (1, 0)).flatten()[batch.supervised]


@pytest.mark.parametrize("block_bytes", [4 * 50, 3 * 4 * 50, 1 << 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_equal_log_softmax(
    batch: Batch, family: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one token a block, of three, and of all."""
    monkeypatch.setitem(head_nll.BLOCK_BYTES, "cpu", block_bytes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours, expected = token_log_probability(model, batch, batch.supervised), plain(model, batch)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(len(expected), generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((weights * ours.exp()).sum(), parameters)
    wanted = torch.autograd.grad((weights * expected.exp()).sum(), parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_bias_of_a_head_has_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_nll.BLOCK_BYTES, "cpu", 2 * 4 * 7)
    torch.manual_seed(0)
    leaves = [torch.randn(5, 3), torch.randn(7, 3), torch.randn(7)]
    targets, weights = torch.randint(0, 7, (5,)), torch.randn(5)
    for leaf in leaves:
        leaf.requires_grad_()
    ours = HeadLogProbability.apply(*leaves, targets)
    logs = F.log_softmax(leaves[0] @ leaves[1].T + leaves[2], dim=1)
    expected = logs.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(ours, expected)
    for one, other in zip(
        torch.autograd.grad((weights * ours).sum(), leaves),
        torch.autograd.grad((weights * expected).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_no_logits_of_all_tokens_are_kept(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for the backward pass, nor in any tensor on the way."""
    monkeypatch.setitem(head_nll.BLOCK_BYTES, "cpu", 4 * 4 * 50)
    model = AutoModelForCausalLM.from_config(FAMILIES["gpt2"])
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    rows: list[int] = []
    before = head_nll.head_logits

    def watched(hidden: torch.Tensor, *others: Any) -> torch.Tensor:
        rows.append(len(hidden))
        return before(hidden, *others)

    monkeypatch.setattr(head_nll, "head_logits", watched)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_log_probability(model, batch, batch.supervised).sum().backward()
    assert max(rows) <= 4
    assert sum(rows) == 2 * len(batch.supervised)  # once forward, once backward
    assert torch.Size([50, 16]) in kept  # the head's weight
    assert not any(50 in shape and len(batch.supervised) in shape for shape in kept)


def test_a_batch_without_tokens_backpropagates(batch: Batch) -> None:
    """As a rank gets that has no record left, and has to take part all the same."""
    model = AutoModelForCausalLM.from_config(FAMILIES["gpt2"])
    found = token_log_probability(model, batch, batch.supervised[:0])
    found.sum().backward()
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)
