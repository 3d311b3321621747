"""Our loss against transformers' own."""

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from raysft.data.batch import Batch
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
    lengths, prompts = torch.tensor([[12], [7], [9]]), torch.tensor([[5], [2], [8]])
    position = torch.arange(12)
    attention_mask = position < lengths
    return Batch(input_ids, attention_mask, attention_mask & (position >= prompts))


def reference_loss(model: Any, batch: Batch) -> torch.Tensor:
    """transformers' own mean loss, with -100 where nothing is supervised."""
    labels = batch.input_ids.masked_fill(~batch.loss_mask, -100)
    return model(batch.input_ids, attention_mask=batch.attention_mask.long(), labels=labels).loss


def test_mean_loss_equals_transformers(model: Any, batch: Batch) -> None:
    ours = supervised_nll(model, batch) / batch.loss_mask[:, 1:].sum()
    torch.testing.assert_close(ours, reference_loss(model, batch), rtol=1e-6, atol=1e-6)


def test_gradients_equal_transformers(model: Any, batch: Batch) -> None:
    parameters = list(model.parameters())
    ours = supervised_nll(model, batch) / batch.loss_mask[:, 1:].sum()
    expected = torch.autograd.grad(reference_loss(model, batch), parameters)
    for found, wanted in zip(torch.autograd.grad(ours, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_padding_changes_nothing(model: Any, batch: Batch) -> None:
    longer = Batch(*(torch.nn.functional.pad(tensor, (0, 6)) for tensor in batch))
    torch.testing.assert_close(supervised_nll(model, batch), supervised_nll(model, longer))


def test_head_sees_supervised_positions_only(model: Any, batch: Batch) -> None:
    seen = []
    hook = model.lm_head.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape))
    supervised_nll(model, batch)
    hook.remove()
    assert [tuple(shape) for shape in seen] == [(1, int(batch.loss_mask.sum()), 16)]


def test_the_model_is_left_as_it_was(model: Any, batch: Batch) -> None:
    supervised_nll(model, batch)
    assert model(batch.input_ids).logits.shape == (3, 12, 50)


def test_a_batch_without_targets_gives_a_zero_that_backpropagates(model: Any, batch: Batch) -> None:
    empty = batch._replace(loss_mask=torch.zeros_like(batch.loss_mask))
    nll = supervised_nll(model, empty)
    nll.backward()
    assert nll.item() == 0.0
    model.zero_grad()


def test_prompt_and_response_sum_to_all(model: Any, batch: Batch) -> None:
    real = batch.attention_mask[:, 1:]
    nll = token_nll(model, batch, keep=real)
    response = batch.loss_mask[:, 1:][real]
    torch.testing.assert_close(nll[response].sum(), supervised_nll(model, batch))
    unmasked = batch._replace(loss_mask=batch.attention_mask)
    torch.testing.assert_close(nll.sum(), supervised_nll(model, unmasked))
