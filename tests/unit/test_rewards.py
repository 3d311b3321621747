"""What answers are worth: by rules, by one's own function, by a reward model; and what fails."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from raysft.data.template import install_template
from raysft.data.turns import Message
from raysft.errors import UserError
from raysft.model.rewards import Answered, load_reward, reward_model
from raysft.model.scalar import add_pad_token

KEY = "ppo.reward"
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
    assert load_reward(name, KEY)([Answered(ASKED, answer, reference)]) == [worth]


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def short(prompt, answer, reference):\n    return -len(answer)\n")
    asked = [Answered(ASKED, text, "") for text in ("abc", "")]
    assert load_reward(f"{file}:short", KEY)(asked) == [-3.0, 0.0]
    for name, message in [
        (f"{file}:long", "has no function 'long'"),
        (f"{tmp_path}/other.py:short", "there is no file"),
        ("exakt", "'exakt' is none of exact, number, demo"),
    ]:
        with pytest.raises(UserError, match=f"ppo.reward: .*{message}"):
            load_reward(name, KEY)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / len(answer)", "fails with ZeroDivisionError: division by zero"),
        ("return float('nan')", "gives nan"),
        ("return None", "fails with TypeError: float() argument"),
        ("raise SystemError('gone')", "fails with SystemError: gone"),
    ],
)
def test_a_reward_that_fails_names_the_answer(tmp_path: Path, body: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        f"def bad(prompt, answer, reference):\n    if answer:\n        return 1\n    {body}\n"
    )
    reward = load_reward(f"{file}:bad", KEY)
    with pytest.raises(UserError) as raised:
        reward([Answered(ASKED, "right", ""), Answered(ASKED, "", "")])
    told = str(raised.value)
    assert told.startswith(f"ppo.reward: {file}:bad {message}")
    assert told.endswith("for the answer '' to 'Count the letters.\\nkey rose'")


def test_a_file_that_does_not_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import nothing_of_this_name\ndef f(): pass\n")
    with pytest.raises(UserError, match=r"mine.py fails with ModuleNotFoundError"):
        load_reward(f"{tmp_path}/mine.py:f", KEY)


def test_a_reward_model_scores_as_it_was_trained(tokenizer: Any, tmp_path: Path) -> None:
    """By its own template, with the end token last; many as each alone (traps 11 and 12)."""
    own = copy.deepcopy(tokenizer)
    add_pad_token(own)
    shape = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64, "num_labels": 1}
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(own), pad_token_id=own.pad_token_id, **shape
    )
    torch.manual_seed(0)
    scalar = AutoModelForSequenceClassification.from_config(config).eval()
    scalar.save_pretrained(tmp_path)
    install_template(own, "plain")
    own.save_pretrained(tmp_path)
    answers = ["a", "rather a long one", "", "bb"]
    expected = []
    for text in answers:
        ids = own(f"q\n{text}{own.eos_token}", return_tensors="pt")["input_ids"]
        expected.append(float(scalar(ids).logits.detach()[0, 0]))
    found = reward_model(tmp_path, KEY, "cpu")(
        [Answered([Message("user", "q")], text, "") for text in answers]
    )
    assert found == pytest.approx(expected, abs=1e-6)
