"""Pairs of a model's own answers: which are taken."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.data.pairs import to_pair
from raysft.data.record_prompts import Prompt, read_prompts
from raysft.data.template import install_template
from raysft.data.turns import Message
from raysft.errors import UserError
from raysft.model.own_pairs import ALIKE, UNENDED, Tally, own_pairs
from raysft.model.rewards import Answered
from raysft.model.sample import Drawn
from raysft.verbs.registry import VERBS
from tests.unit.test_audit import write


def test_the_best_and_the_worst_that_have_ended_make_a_pair() -> None:
    prompt = Prompt([Message("user", "q")], "aaa", [1])
    drawn = [Drawn("a", True), Drawn("aaa", True), Drawn("aaaa", False), Drawn("", True)]
    tally = Tally()
    answered = [(prompt, drawn), (prompt, [Drawn("b", True)] * 4)]

    def reward(answered: Sequence[Answered]) -> list[float]:
        return [float(one.answer.count("a")) for one in answered]

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


def test_a_model_that_has_learnt_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="asks a model that has learnt something"):
        VERBS["pairs"].plan(load_config("gpt2-tiny-cpu", []))
