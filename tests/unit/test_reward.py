"""Reward models: the head, its loss, and an exported folder that transformers scores as we do."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from raysft.config.load import load_config
from raysft.config.preference import RewardModel
from raysft.data.batch import pack, pad
from raysft.errors import UserError
from raysft.model.attention import PACKED
from raysft.model.generate import load
from raysft.model.load import load_model, load_model_config, load_template
from raysft.model.scalar import PAD_TOKEN, add_pad_token, is_scalar, rewards_at
from raysft.train.objectives.reward import facts, pair_loss, pair_rewards
from tests.unit.test_pair_batches import pairs
from tests.unit.test_preference_losses import language as language  # a fixture


def test_values_of_the_loss() -> None:
    rewards, margins = torch.tensor([[1.0, 0.5], [-1.0, 2.0]]), torch.tensor([0.25, 0.0])
    found = pair_loss(rewards, margins, RewardModel(center=0.1, margins=True))
    expected = [
        math.log(1 + math.exp(-(0.5 - 0.25))) + 0.1 * 1.5**2,
        math.log(1 + math.exp(3.0)) + 0.1 * 1.0**2,
    ]
    assert found.tolist() == pytest.approx(expected)
    plain = pair_loss(rewards, margins, RewardModel(center=0.0))
    assert float(plain[0]) == pytest.approx(math.log(1 + math.exp(-0.5)))


def test_the_loss_recovers_the_rewards_that_labels_were_drawn_by(language: Any) -> None:
    """Of 259 answers to each of two prompts, from 200,000 sampled labels."""
    true = language.reward
    draw = torch.Generator().manual_seed(3)
    one, other = (torch.randint(0, true.shape[1], (2, 100_000), generator=draw) for _ in range(2))
    gap = true.gather(1, one) - true.gather(1, other)
    wins = torch.rand(gap.shape, generator=draw, dtype=torch.float64) < torch.sigmoid(gap)
    chosen, rejected = torch.where(wins, one, other), torch.where(wins, other, one)
    learnt = torch.zeros_like(true, requires_grad=True)
    optimizer = torch.optim.LBFGS([learnt], max_iter=100, line_search_fn="strong_wolfe")
    settings = RewardModel(center=1e-3)

    def closure() -> Any:
        optimizer.zero_grad()
        both = [learnt.gather(1, side).flatten() for side in (chosen, rejected)]
        loss = pair_loss(torch.stack(both, 1), torch.zeros(1), settings).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    for prompt in range(len(true)):
        found = torch.corrcoef(torch.stack([true[prompt], learnt.detach()[prompt]]))[0, 1]
        assert float(found) > 0.99


def test_facts_of_held_out_pairs() -> None:
    """Ties count half; a sure model that is right half of the time is badly calibrated."""
    rewards = np.array([[9.0, 0.0], [0.0, 9.0], [1.0, 1.0], [2.0, 1.0]])
    lengths = np.array([[9.0, 1.0], [1.0, 9.0], [2.0, 2.0], [3.0, 2.0]])
    found = facts(np.ones(4), rewards, lengths)
    assert found["eval_accuracy"] == 2.5 / 4
    assert found["eval_reward_mean"] == rewards.mean()
    assert found["eval_reward_spread"] == rewards.std()
    assert found["eval_length_correlation"] == pytest.approx(
        np.corrcoef(rewards.ravel(), lengths.ravel())[0, 1]
    )
    sure = 1 / (1 + math.exp(-9.0)), 1 / (1 + math.exp(-1.0))
    expected = (abs(1 - 2 * sure[0]) + (1 - sure[1]) + 0.0) / 4
    assert found["eval_calibration_error"] == pytest.approx(expected)
    assert facts(np.zeros(0), np.zeros((0, 2)), np.zeros((0, 2)))["eval_accuracy"] is None


def scalar_of(folder: Path, *overrides: str) -> tuple[Any, Any]:
    """Model and template as a run makes them."""
    sets = [f"model.path={folder}", "model.init=pretrained", "model.tokenizer=none", *overrides]
    config = load_config("gpt2-tiny-cpu", [*sets, "batch.seq_len=32", "model.dropout=0.0"])
    template = load_template(config, pads=True)
    hf_config = load_model_config(config, template, scalar=True)
    size = len(template.tokenizer)
    return load_model(config, hf_config, {"zero_optimization": {"stage": 0}}, size,
                      scalar=True), template  # fmt: skip


@pytest.fixture
def causal(tokenizer: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "causal"
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tokenizer), n_layer=2, n_embd=16, n_head=2, n_positions=32
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_pad_token_that_nothing_else_uses(tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    own.pad_token = own.eos_token
    before = len(own)
    assert add_pad_token(own) == 1
    assert (own.pad_token, own.pad_token_id) == (PAD_TOKEN, before)
    assert own.pad_token_id != own.eos_token_id
    assert add_pad_token(own) == 0


def test_the_head_is_drawn_by_the_seed_alone(causal: Path) -> None:
    torch.manual_seed(17)
    one, _ = scalar_of(causal)
    torch.manual_seed(18)
    other, _ = scalar_of(causal)
    assert is_scalar(one)
    assert torch.equal(one.score.weight, other.score.weight)
    assert one.score.weight.std().item() == pytest.approx(1 / math.sqrt(17), rel=0.5)
    base = AutoModelForCausalLM.from_pretrained(causal)
    rows = base.transformer.wte.weight
    assert torch.equal(one.transformer.wte.weight[: len(rows)], rows)
    assert not torch.equal(scalar_of(causal, "run.seed=1")[0].score.weight, one.score.weight)


def test_rewards_are_at_the_end_of_each_half_whatever_the_layout(causal: Path) -> None:
    model, _ = scalar_of(causal)
    assert model.config._attn_implementation == PACKED
    model.eval()
    data, everything = pairs(), np.array([3, 0, 4, 1, 2])
    packed = pair_rewards(model, pack(data, everything))
    model.set_attn_implementation("sdpa")
    padded = pair_rewards(model, pad(data, everything))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    for row, number in enumerate(everything):
        border = int(data.chosen[number])  # type: ignore[index]
        for side, half in enumerate((data.tokens(number)[:border], data.tokens(number)[border:])):
            ids = torch.from_numpy(half.astype(np.int64))[None]
            alone = type(model).forward(model, input_ids=ids).logits
            torch.testing.assert_close(padded[row, side], alone[0, 0], rtol=1e-5, atol=1e-5)


def test_more_padding_changes_no_reward_loss(causal: Path) -> None:
    model, _ = scalar_of(causal)
    model.eval().set_attn_implementation("sdpa")
    batch = pad(pairs(), np.arange(3))
    wide = torch.nn.functional.pad(batch.input_ids, (0, 5), value=9)
    mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, 5))
    assert batch.pairs is not None
    width, more = batch.input_ids.shape[1], wide.shape[1]
    ends = batch.pairs.ends // width * more + batch.pairs.ends % width
    found = rewards_at(model, wide, ends, attention_mask=mask)
    torch.testing.assert_close(found.view(-1, 2), pair_rewards(model, batch))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_exported_model_scores_a_batch_as_each_alone(
    tokenizer: Any, tmp_path: Path, causal: Path, kind: str, side: str
) -> None:
    """In transformers, with the end token at the end of each text, padded on either side."""
    if kind == "llama":
        causal = tmp_path / "llama"
        config = AutoConfig.for_model(
            "llama", vocab_size=len(tokenizer), num_hidden_layers=2, hidden_size=16,
            intermediate_size=24, num_attention_heads=2, max_position_embeddings=32,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(causal)
        tokenizer.save_pretrained(causal)
    model, template = scalar_of(causal)
    folder = tmp_path / "exported"
    model.save_pretrained(folder)
    template.tokenizer.save_pretrained(folder)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    again = AutoTokenizer.from_pretrained(folder, padding_side=side)
    assert loaded.config.num_labels == 1
    assert loaded.config.pad_token_id == again.pad_token_id != again.eos_token_id
    texts = [f"q\n{answer}{again.eos_token}" for answer in ("a", "abc", "")]
    together = again(texts, padding=True, return_tensors="pt")
    positions = (together["attention_mask"].cumsum(1) - 1).clamp(min=0)
    scores = loaded(**together, position_ids=positions).logits[:, 0]
    model.eval().set_attn_implementation("sdpa")
    for text, score in zip(texts, scores, strict=True):
        ids = again(text, return_tensors="pt")["input_ids"]
        assert int(ids[0, -1]) == again.eos_token_id
        own = model(input_ids=ids, tokens=torch.tensor([ids.shape[1] - 1]))
        torch.testing.assert_close(own[0], score, rtol=1e-4, atol=1e-5)


def test_a_reward_model_is_not_asked_to_write(causal: Path, tmp_path: Path) -> None:
    model, template = scalar_of(causal)
    model.save_pretrained(tmp_path / "reward")
    template.tokenizer.save_pretrained(tmp_path / "reward")
    with pytest.raises(UserError, match="is a reward model, which scores answers and writes none"):
        load(str(tmp_path / "reward"))
    again, _ = scalar_of(tmp_path / "reward")  # but goes on being trained, with its own head
    assert torch.equal(again.score.weight, model.score.weight)


def test_a_model_without_a_scalar_head_is_refused(causal: Path) -> None:
    from raysft.model.scalar import prepare_scalar

    with pytest.raises(UserError, match="no linear head 'score'"):
        prepare_scalar(AutoModelForCausalLM.from_pretrained(causal), 0, draws_head=True)
