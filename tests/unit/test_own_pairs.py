"""Pairs of a model's own answers: what they are worth, which are taken, and that draws repeat."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from raysft.config.load import load_config
from raysft.data.pairs import to_pair
from raysft.data.record_prompts import Prompt, read_prompts
from raysft.data.template import install_template
from raysft.data.turns import Message
from raysft.errors import UserError
from raysft.model.own_pairs import ALIKE, UNENDED, Tally, own_pairs
from raysft.model.rewards import load_reward, reward_model
from raysft.model.sample import Drawn, Sampling, draw
from raysft.model.scalar import add_pad_token
from raysft.verbs.registry import VERBS
from tests.unit.test_audit import write

ASKED = [Message("user", "Count the letters.\nkey rose")]


@pytest.mark.parametrize(
    ("name", "answer", "reference", "worth"),
    [
        ("exact", " a b\n", "a b", 1.0),
        ("exact", "a", "a b", 0.0),
        ("number", "so it is 1,200.", "#### 1200", 1.0),
        ("number", "12 or 13", "#### 12", 0.0),
        ("number", "none", "#### 12", 0.0),
        ("demo", "key 3, rose 4", "whatever", 1.0),
        ("demo", "key 3", "key 3", 0.0),
    ],
)
def test_rules(name: str, answer: str, reference: str, worth: float) -> None:
    assert load_reward(name)(ASKED, answer, reference) == worth


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def short(prompt, answer, reference):\n    return -len(answer)\n")
    assert load_reward(f"{file}:short")(ASKED, "abc", "") == -3.0
    for name, message in [
        (f"{file}:long", "has no function 'long'"),
        (f"{tmp_path}/other.py:short", "there is no file"),
        ("exakt", "'exakt' is none of exact, number, demo"),
    ]:
        with pytest.raises(UserError, match=message):
            load_reward(name)


def test_the_best_and_the_worst_that_have_ended_make_a_pair() -> None:
    prompt = Prompt([Message("user", "q")], "aaa", [1])
    drawn = [Drawn("a", True), Drawn("aaa", True), Drawn("aaaa", False), Drawn("", True)]
    tally = Tally()
    answered = [(prompt, drawn), (prompt, [Drawn("b", True)] * 4)]

    def reward(_prompt: Any, answer: str, _reference: str) -> float:
        return float(answer.count("a"))

    (pair,) = own_pairs(answered, reward, 0, tally)
    assert pair == {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "aaa"}],
        "rejected": [{"role": "assistant", "content": ""}],
        "score_chosen": 3.0, "score_rejected": 0.0,
    }  # fmt: skip
    assert (tally.answers, tally.worth) == (8, 4.0)
    assert tally.left_out == {UNENDED: 1, ALIKE: 1}
    pair["rejected"][0]["content"] = "a"  # what is written is read
    assert to_pair(json.loads(json.dumps(pair))).margin == 3.0


@pytest.fixture
def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), **shape)
    ).eval()


def test_draws_repeat_with_their_seed_and_are_of_the_models_distribution(
    tokenizer: Any, model: Any
) -> None:
    """At any temperature: against the frequencies of the first token by softmax."""
    template = install_template(copy.deepcopy(tokenizer), "plain")
    how, prompts = Sampling(4, 1.0, 6), [[5, 6, 7], [8]]
    first = draw(model, template, prompts, how, [0, 3])
    assert draw(model, template, prompts, how, [0, 3]) == first
    assert draw(model, template, prompts, how, [0, 4]) != first
    assert [len(answers) for answers in first] == [4, 4]
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from uniform
        logits = model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    wanted = (logits / 2).softmax(-1)
    (answers,) = draw(model, template, [[5, 6, 7]], Sampling(4000, 2.0, 1), [1])
    tokens = [tokenizer(a.text)["input_ids"][:1] or [0] for a in answers if a.text.isascii()]
    found = torch.bincount(torch.tensor(tokens).flatten(), minlength=len(wanted)) / len(answers)
    plain = torch.tensor([tokenizer.decode([i]).isascii() for i in range(len(wanted))])
    assert float((found - wanted)[plain].abs().max()) < 0.03


def test_prompts_are_all_before_the_last_answer(tokenizer: Any, tmp_path: Path) -> None:
    turns = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    record = {"messages": [{"role": role, "content": text} for role, text in turns]}
    long = {"messages": [{"role": "user", "content": "q" * 40}, record["messages"][1]]}
    path = write(tmp_path / "d.jsonl", [record, long])
    sets = [f"data.path={path}", "model.tokenizer=unused", "batch.seq_len=32"]
    template = install_template(copy.deepcopy(tokenizer), "plain")
    (prompt,), dropped = read_prompts(load_config("gpt2-tiny-cpu", sets), template)
    assert [turn.content for turn in prompt.turns] == ["q", "a", "r"]
    assert prompt.reference == "b"
    assert tokenizer.decode(prompt.ids) == f"q\na{tokenizer.eos_token}r\n"
    assert dropped == {"the prompt fills batch.seq_len": 1}


def test_a_reward_model_scores_as_it_was_trained(tokenizer: Any, tmp_path: Path) -> None:
    """By its own template, with the end token last."""
    own = copy.deepcopy(tokenizer)
    add_pad_token(own)
    shape = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32, "num_labels": 1}
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(own), pad_token_id=own.pad_token_id, **shape
    )
    torch.manual_seed(0)
    scalar = AutoModelForSequenceClassification.from_config(config).eval()
    scalar.save_pretrained(tmp_path)
    install_template(own, "plain")
    own.save_pretrained(tmp_path)
    ids = own(f"q\na{own.eos_token}", return_tensors="pt")["input_ids"]
    expected = float(scalar(ids).logits.detach()[0, 0])
    found = reward_model(tmp_path)([Message("user", "q")], "a", "")
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_model_that_has_learnt_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="asks a model that has learnt something"):
        VERBS["pairs"].plan(load_config("gpt2-tiny-cpu", []))
