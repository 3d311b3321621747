"""Preference records of every shape to pairs, and pairs to tokens."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysft.config.load import load_config
from raysft.data.audit import audit
from raysft.data.dataset import Prepared, TokenDataset, prepare
from raysft.data.formats import detect_format
from raysft.data.pairs import to_pair
from raysft.data.preview import previews
from raysft.data.template import install_template
from raysft.data.turns import NothingToLearn, RecordError
from raysft.errors import UserError
from tests.unit.test_audit import write

ASKED = [{"role": "user", "content": "q"}]
HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: "


def said(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def gpt(value: str) -> dict[str, str]:
    return {"from": "gpt", "value": value}


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "q"),
        ({"question": "q", "system": "s", "chosen": "good", "rejected": "bad"}, "s|q"),
        ({"prompt": ASKED, "chosen": [said("good")], "rejected": [said("bad")]}, "q"),
        # UltraFeedback, as on the hub: the prompt is in both, and `messages` is the chosen one.
        ({"prompt": "q", "chosen": [*ASKED, said("good")], "rejected": [*ASKED, said("bad")],
          "messages": [*ASKED, said("good")], "score_chosen": 8.0, "score_rejected": 5.5}, "q"),
        # One answer is the beginning of the other; the first character differs.
        ({"chosen": HH + "good", "rejected": HH + "bad"}, "q|a|r"),
        ({"prompt": HH, "chosen": " good", "rejected": " bad"}, "q|a|r"),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": gpt("good"),
          "rejected": gpt("bad")}, "q"),
        ({"instruction": "q", "input": "i", "history": [["h", "k"]], "chosen": "good",
          "rejected": "bad"}, "h|k|q\ni"),
    ],
)  # fmt: skip
def test_shapes_of_pairs(record: dict[str, Any], prompt: str) -> None:
    assert detect_format(record) == "preference"
    pair = to_pair(record)
    assert "|".join(message.content for message in pair.chosen[:-1]) == prompt
    assert pair.chosen[:-1] == pair.rejected[:-1]
    words = [half[-1].content.strip() for half in (pair.chosen, pair.rejected)]
    assert words == ["good", "bad"]
    assert all(half[-1].role == "assistant" for half in (pair.chosen, pair.rejected))
    assert pair.margin == (2.5 if "score_chosen" in record else 0.0)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "both answers are the same"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "an answer is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": []}, "an answer is empty"),
        ({"chosen": HH + "a", "rejected": HH.replace("q", "p") + "b"}, "differ before their last"),
        ({"chosen": [*ASKED, said("x"), *ASKED, said("a")],
          "rejected": [*ASKED, said("y"), *ASKED, said("b")]}, "differ before their last"),
        ({"chosen": [*ASKED, said("a")], "rejected": ASKED}, "differ before|no answer"),
        ({"prompt": "q", "completion": "a", "label": True}, "no answer of the other kind"),
    ],
)  # fmt: skip
def test_what_tells_nothing_apart_is_left_out(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(NothingToLearn, match=reason):
        to_pair(record)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "no field 'prompt'"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "'chosen' is int, neither text nor turns"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "much"},
            "'margin' is no number",
        ),
        ({"prompt": "q", "chosen": [{"role": "x", "content": ""}], "rejected": "b"}, "role 'x'"),
    ],
)
def test_bad_pairs_say_why(record: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        to_pair(record)


def config_of(path: Path, *overrides: str) -> Any:
    sets = [f"data.path={path}", "model.tokenizer=unused", "data.eval_fraction=0", *overrides]
    return load_config("gpt2-tiny-cpu", sets)


def prepared(tokenizer: Any, path: Path, *overrides: str, pairs: bool | None = True) -> Prepared:
    template = install_template(copy.deepcopy(tokenizer), "auto")
    return prepare(config_of(path, *overrides), template, pairs=pairs)


def halves(tokenizer: Any, data: TokenDataset, index: int) -> list[tuple[str, str]]:
    """Of the chosen and the rejected one: all its text, and what of it is trained."""
    assert data.chosen is not None
    border = int(data.chosen[index])
    ids, mask = data.tokens(index), data.mask(index)
    return [
        (tokenizer.decode(ids[half]), tokenizer.decode(ids[half][mask[half]]))
        for half in (slice(border), slice(border, None))
    ]


def test_the_halves_share_their_prompt_and_each_is_trained_with_its_end(
    tokenizer: Any, tmp_path: Path
) -> None:
    """Only the answer's tokens and its end enter a log-probability, whatever the answers share."""
    pairs = [("ab", "abc"), ("x", "y"), ("same start 1", "same start 2")]
    records = [{"prompt": "q", "chosen": one, "rejected": other} for one, other in pairs]
    data = prepared(tokenizer, write(tmp_path / "d.jsonl", records)).train
    end = tokenizer.eos_token
    for index, answers in enumerate(pairs):
        expected = [(f"q\n{answer}{end}", answer + end) for answer in answers]
        assert halves(tokenizer, data, index) == expected
    assert data.parts.sum() == data.lengths.sum()


def test_both_halves_are_cut_alike_and_equal_ones_left_out(tokenizer: Any, tmp_path: Path) -> None:
    records = [
        {"prompt": "0123456789", "chosen": "a" * 8, "rejected": "b" * 3},  # the prompt's start goes
        {"prompt": "0123", "chosen": "a" * 40, "rejected": "b" * 30},
        {"prompt": "0123", "chosen": "a" * 40, "rejected": "a" * 39 + "b"},  # equal after the cut
    ]
    path = write(tmp_path / "d.jsonl", records)
    found = prepared(tokenizer, path, "batch.seq_len=16", "batch.tokens_per_micro_batch=64")
    end = tokenizer.eos_token
    assert halves(tokenizer, found.train, 0) == [
        (f"456789\n{'a' * 8}{end}", "a" * 8 + end), (f"456789\n{'b' * 3}{end}", "b" * 3 + end)
    ]  # fmt: skip
    assert [text for text, _ in halves(tokenizer, found.train, 1)] == [
        "0123\n" + "a" * 11, "0123\n" + "b" * 11
    ]  # fmt: skip
    assert found.tokenised.counts.dropped == {"both answers are the same within batch.seq_len": 1}


def test_labelled_answers_become_pairs_where_both_kinds_are_there(
    tokenizer: Any, tmp_path: Path
) -> None:
    labels = [("q", "a", True), ("p", "b", True), ("q", "c", False), ("q", "d", False)]
    names = ("question", "completion", "label")
    records = [dict(zip(names, values, strict=True)) for values in labels]
    path = write(tmp_path / "d.jsonl", records)
    found = prepared(tokenizer, path, "data.on_bad_record=skip", pairs=True)
    assert [text for text, _ in halves(tokenizer, found.train, 0)] == [
        f"q\n{answer}{tokenizer.eos_token}" for answer in "ac"
    ]
    assert found.tokenised.counts.dropped == {"its prompt has no answer of the other kind": 2}
    assert len(prepared(tokenizer, path, pairs=False).train) == 2  # supervised: the good ones


def test_a_bad_pair_is_told_with_its_file_and_line(tokenizer: Any, tmp_path: Path) -> None:
    sound = {"prompt": "q", "chosen": "a", "rejected": "b"}
    path = write(tmp_path / "d.jsonl", [sound, {"prompt": "q", "chosen": 3, "rejected": "b"}])
    with pytest.raises(UserError, match=r"d.jsonl line 2: field 'chosen' is int"):
        prepared(tokenizer, path)


@pytest.mark.parametrize(
    ("record", "pairs", "message"),
    [
        ({"prompt": "q", "completion": "a"}, True, "line 1: this record has one answer"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, False, "line 1: these are preference"),
    ],
)
def test_records_of_the_other_kind_are_refused(
    tokenizer: Any, tmp_path: Path, record: Any, pairs: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepared(tokenizer, write(tmp_path / "d.jsonl", [record]), pairs=pairs)


def test_fields_are_mapped_and_margins_kept(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"ask": "q", "win": "a", "lose": "b", "by": 2}])
    names = {"prompt": "ask", "chosen": "win", "rejected": "lose", "margin": "by"}
    sets = [f"data.fields.{known}={name}" for known, name in names.items()]
    data = prepared(tokenizer, path, *sets).train
    assert data.margins is not None
    assert data.margins.tolist() == [2.0]


def test_the_audit_tells_lengths_directions_and_what_only_length_tells(
    tokenizer: Any, tmp_path: Path
) -> None:
    records = [{"prompt": f"q{i}", "chosen": "a" * 9, "rejected": "b"} for i in range(30)]
    records[0] = {"prompt": "q", "chosen": "a", "rejected": "ab"}
    records[1] = {"prompt": "q", "chosen": "ab", "rejected": "a"}
    path = write(tmp_path / "d.jsonl", records)
    template = install_template(copy.deepcopy(tokenizer), "auto")
    found = prepare(config_of(path), template, pairs=None)
    facts = audit(config_of(path), template, found)
    assert facts["pairs"] == {
        "chosen_longer": pytest.approx(29 / 30), "only_length": 2, "both_directions": 2,
        "with_margin": 0, "negative_margin": 0,
    }  # fmt: skip
    assert facts["response_tokens"]["max"] == 10
    assert facts["rejected_tokens"]["max"] == 3
    assert {f["name"] for f in facts["findings"]} == {
        "both_directions", "only_length", "length_bias"
    }  # fmt: skip
    json.dumps(facts)


def test_preview_shows_both_halves_cut_alike(tokenizer: Any, tmp_path: Path) -> None:
    record = {"prompt": "0123456789", "chosen": "a" * 8, "rejected": "b"}
    path = write(tmp_path / "d.jsonl", [record])
    template = install_template(copy.deepcopy(tokenizer), "auto")
    sets = ("batch.seq_len=16", "batch.tokens_per_micro_batch=64")
    chosen, rejected = previews(config_of(path, *sets), template, 1)
    assert (chosen.where[-8:], rejected.where[-10:]) == (", chosen", ", rejected")
    cut = [[token.cut for token in view.tokens[:6]] for view in (chosen, rejected)]
    assert cut == [[True] * 4 + [False] * 2] * 2
    assert np.sum([token.supervised for token in rejected.tokens]) == 2
