"""Our loss against transformers' own."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
)

from raysft.data.batch import Batch, make_batch
from raysft.errors import UserError
from raysft.model import cpu_bf16
from raysft.train import head_nll, loss
from raysft.train.loss import supervised_nll, token_nll


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**shape)).eval()


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(0, 50, (3, 12), generator=generator)
    return masked(input_ids, lengths=[12, 7, 9], prompts=[5, 2, 8])


def masked(
    input_ids: torch.Tensor, lengths: list[int], prompts: list[int], prompt_weight: float = 0.0
) -> Batch:
    position = np.arange(input_ids.shape[1])
    attention_mask = position < np.array(lengths)[:, None]
    scored = attention_mask & (position > 0)
    supervised = scored & (position >= np.array(prompts)[:, None])
    inputs = {"attention_mask": torch.from_numpy(attention_mask)}
    return make_batch(input_ids.numpy(), scored, supervised, inputs, prompt_weight)


def reference_loss(model: Any, batch: Batch) -> torch.Tensor:
    """transformers' own mean loss, with -100 where nothing is supervised."""
    labels = torch.full_like(batch.input_ids, -100).flatten()
    labels[batch.supervised] = batch.input_ids.flatten()[batch.supervised]
    labels = labels.view_as(batch.input_ids)
    mask = batch.inputs["attention_mask"].long()
    return model(batch.input_ids, attention_mask=mask, labels=labels).loss


def test_mean_loss_equals_transformers(model: Any, batch: Batch) -> None:
    ours = supervised_nll(model, batch) / len(batch.supervised)
    torch.testing.assert_close(ours, reference_loss(model, batch), rtol=1e-6, atol=1e-6)


def test_gradients_equal_transformers(model: Any, batch: Batch) -> None:
    parameters = list(model.parameters())
    ours = supervised_nll(model, batch) / len(batch.supervised)
    expected = torch.autograd.grad(reference_loss(model, batch), parameters)
    for found, wanted in zip(torch.autograd.grad(ours, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_padding_changes_nothing(model: Any, batch: Batch) -> None:
    ids = torch.nn.functional.pad(batch.input_ids, (0, 6))
    longer = masked(ids, lengths=[12, 7, 9], prompts=[5, 2, 8])
    torch.testing.assert_close(supervised_nll(model, batch), supervised_nll(model, longer))


def test_logits_are_made_at_supervised_positions_only(
    model: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    head_logits = head_nll.head_logits

    def watched(hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        made.append(head_logits(hidden, *rest))
        return made[-1]

    monkeypatch.setattr(head_nll, "head_logits", watched)
    supervised_nll(model, batch)
    assert [tuple(logits.shape) for logits in made] == [(len(batch.supervised), 50)]


def test_the_model_is_left_as_it_was(model: Any, batch: Batch) -> None:
    supervised_nll(model, batch)
    assert model(batch.input_ids).logits.shape == (3, 12, 50)


def test_a_batch_without_targets_gives_a_zero_that_backpropagates(model: Any, batch: Batch) -> None:
    empty = batch._replace(supervised=batch.supervised[:0])
    nll = supervised_nll(model, empty)
    nll.backward()
    assert nll.item() == 0.0
    model.zero_grad()


def test_prompt_and_response_sum_to_all(model: Any, batch: Batch) -> None:
    nll = token_nll(model, batch, batch.scored)
    torch.testing.assert_close(nll[batch.in_answer].sum(), supervised_nll(model, batch))
    unmasked = batch._replace(supervised=batch.scored)
    torch.testing.assert_close(nll.sum(), supervised_nll(model, unmasked))


def of_weight(batch: Batch, weight: float) -> Batch:
    """The same records, their prompts trained with this weight."""
    lengths, prompts = [12, 7, 9], [5, 2, 8]
    return masked(batch.input_ids, lengths, prompts, weight)


@pytest.mark.parametrize("plain_head", [True, False])
def test_weighted_prompts_equal_a_loop_over_tokens(
    model: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch, plain_head: bool
) -> None:
    monkeypatch.setattr(loss, "has_plain_head", lambda _: plain_head)
    mask = batch.inputs["attention_mask"]
    logs = model(batch.input_ids, attention_mask=mask.long()).logits.log_softmax(-1)
    total = divisor = torch.zeros(())
    for row, (length, prompt) in enumerate(zip([12, 7, 9], [5, 2, 8], strict=True)):
        for at in range(1, length):
            weight = 1.0 if at >= prompt else 0.3
            total = total - weight * logs[row, at - 1, batch.input_ids[row, at]]
            divisor = divisor + weight
    weighted = of_weight(batch, 0.3)
    assert weighted.weights is not None
    torch.testing.assert_close(weighted.weights.sum(), divisor)
    parameters = list(model.parameters())
    ours = supervised_nll(model, weighted)
    torch.testing.assert_close(ours, total)
    grads = torch.autograd.grad(ours, parameters), torch.autograd.grad(total, parameters)
    for found, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_weights_of_0_and_1_are_the_masked_and_the_unmasked_loss(model: Any, batch: Batch) -> None:
    """To the bit, with their gradients; and weights that are there but equal give them too."""
    parameters = list(model.parameters())
    unmasked = batch._replace(supervised=batch.scored)
    ones = unmasked._replace(weights=torch.ones(len(batch.scored)))
    for ours, wanted in (
        (of_weight(batch, 0.0), batch),
        (of_weight(batch, 1.0), unmasked),
        (ones, unmasked),
    ):
        losses = supervised_nll(model, ours), supervised_nll(model, wanted)
        assert losses[0].equal(losses[1])
        grads = [torch.autograd.grad(nll, parameters) for nll in losses]
        assert all(found.equal(right) for found, right in zip(*grads, strict=True))


@pytest.mark.parametrize("tokens", [1, 3, 7, 1000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("widened", [False, True])
@pytest.mark.parametrize("like_a_gpu", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_change_neither_loss_nor_gradients(
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    bias: bool,
    widened: bool,
    like_a_gpu: bool,
    weighted: bool,
) -> None:
    """Against autograd through the whole matrix of logits, in fp64.

    like_a_gpu: with rows of logits that are aligned, and gradients that are summed in fp32.
    """
    for setting in (head_nll.ALIGNED, head_nll.SUMMED_IN) if like_a_gpu else ():
        monkeypatch.setitem(setting, "cpu", setting["cuda"])
    generator = torch.Generator().manual_seed(2)
    monkeypatch.setitem(head_nll.BLOCK_BYTES, "cpu", 4 * 50 * tokens)
    monkeypatch.setattr(head_nll, "WIDENED_ROWS", 16)
    dtype, tolerance = torch.float32, 1e-5
    if widened:
        monkeypatch.setattr(cpu_bf16, "_widened", True)
        dtype, tolerance = torch.bfloat16, 2e-2
    shapes = [(7, 16), (50, 16), *([(50,)] if bias else [])]
    inputs = [
        torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes
    ]
    targets = torch.randint(0, 50, (7,), generator=generator)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    logits = torch.nn.functional.linear(*exact)
    weights = torch.rand(7, generator=generator) if weighted else None
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = 3 * (nll if weights is None else nll * weights).sum()
    padded = inputs if bias else [*inputs, None]
    found = 3 * head_nll.HeadNLL.apply(*padded, targets, 1.0, weights)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    grads = torch.autograd.grad(found, inputs), torch.autograd.grad(expected, exact)
    for ours, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=tolerance, atol=10 * tolerance)


def test_gradients_in_fp16_keep_what_the_loss_scale_saves() -> None:
    """A sure model's gradients are below the least fp16 number until they are scaled."""
    hidden = torch.full((1, 4), 2.0, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(20, 4, dtype=torch.float16)
    weight[0] = 2.2  # logit 17.6: the other tokens have a probability of 2e-8 each
    weight.requires_grad_()
    target = torch.zeros(1, dtype=torch.int64)
    scale = 2.0**14
    grads = []
    for early in (1.0, scale):
        nll = head_nll.HeadNLL.apply(hidden, weight, None, target, early)
        grads.append(torch.autograd.grad(nll * scale, weight)[0][1:].double())
    exact = weight.detach().double().requires_grad_()
    logits = hidden.detach().double() @ exact.T
    wanted = scale * torch.nn.functional.cross_entropy(logits, target)
    expected = torch.autograd.grad(wanted, exact)[0][1:]
    assert not grads[0].any()
    torch.testing.assert_close(grads[1], expected, rtol=1e-2, atol=0)


SMALL = {
    "vocab_size": 50, "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None,
    "max_position_embeddings": 32,
}  # fmt: skip
# Whether the logits are what the head gives; some call the head of a decoder within the model.
FAMILIES: dict[str, tuple[PreTrainedConfig, bool]] = {
    "opt": (OPTConfig(ffn_dim=24, word_embed_proj_dim=16, **SMALL), True),
    "llama": (LlamaConfig(**SMALL), True),
    "gemma 2, soft cap": (Gemma2Config(**SMALL, final_logit_softcapping=2.0), False),
    "cohere, scaled": (CohereConfig(**SMALL, logit_scale=0.25), False),
    "granite, scaled": (GraniteConfig(**SMALL, logits_scaling=4.0), False),
    "granite, scaled by 1": (GraniteConfig(**SMALL, logits_scaling=1.0), False),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_of_other_families_equal_transformers(batch: Batch, name: str) -> None:
    config, plain = FAMILIES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = supervised_nll(model, batch) / len(batch.supervised)
    wanted = reference_loss(model, batch)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    grads = (
        torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        for loss in (ours, wanted)
    )
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert loss.has_plain_head(model) == plain


def test_the_head_is_tried_without_drawing_random_numbers(batch: Batch) -> None:
    """Else a run that goes on would draw others for its dropout than one left alone."""
    shape = {"vocab_size": 50, "n_layer": 1, "n_embd": 16, "n_head": 2, "resid_pdrop": 0.5}
    dropping = GPT2LMHeadModel(GPT2Config(**shape)).train()
    before = torch.get_rng_state()
    assert loss.has_plain_head(dropping)
    assert torch.equal(torch.get_rng_state(), before)
    assert dropping.training
    supervised_nll(dropping, batch)
    assert not torch.equal(torch.get_rng_state(), before)


def test_logits_that_are_changed_in_place_are_not_plain(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a model that forbids some tokens."""
    before = model.forward

    def forbidding(*args: Any, **options: Any) -> Any:
        output = before(*args, **options)
        output.logits[..., 3] = float("-inf")
        return output

    assert loss.gives_what_its_head_gives(model)
    monkeypatch.setattr(model, "forward", forbidding)
    assert not loss.gives_what_its_head_gives(model)


def test_a_model_that_does_not_call_its_head_is_refused(model: Any, batch: Batch) -> None:
    assert loss.has_plain_head(model)
    other = torch.nn.Linear(16, 50)
    before = model.get_output_embeddings
    model.get_output_embeddings = lambda: other
    try:
        with pytest.raises(UserError, match="GPT2LMHeadModel does not compute its logits by"):
            supervised_nll(model, batch)
    finally:
        model.get_output_embeddings = before


def test_gradients_of_many_blocks_are_summed_in_fp32_where_a_gpu_sums_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bf16 would lose a small part of each of 64 blocks."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.rand(64, 8, generator=generator).to(torch.bfloat16)
    weight = torch.randn(50, 8, generator=generator).to(torch.bfloat16).requires_grad_()
    targets = torch.zeros(64, dtype=torch.int64)
    monkeypatch.setitem(head_nll.BLOCK_BYTES, "cpu", 4 * 50)
    errors = []
    exact = weight.detach().double().requires_grad_()
    logits = hidden.double() @ exact.T
    (wanted,) = torch.autograd.grad(
        torch.nn.functional.cross_entropy(logits, targets, reduction="sum"), exact
    )
    for summed in (None, torch.float32):
        monkeypatch.setitem(head_nll.SUMMED_IN, "cpu", summed)
        nll = head_nll.HeadNLL.apply(hidden, weight, None, targets)
        (grad,) = torch.autograd.grad(nll, weight)
        assert grad.dtype == torch.bfloat16
        errors.append(float((grad.double() - wanted).norm() / wanted.norm()))
    assert errors[1] < 0.003
    assert errors[1] < errors[0] / 3
