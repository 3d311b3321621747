"""What the preview shows of single tokens."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.data.audit import audit
from raysft.data.dataset import prepare
from raysft.data.preview import previews
from raysft.data.template import install_template
from tests.tokenizers_of_families import FAMILIES, lossy


def shown(tokenizer: Any, path: Path) -> list[str]:
    config = load_config("gpt2-tiny-cpu", [f"data.path={path}", "model.tokenizer=unused"])
    (view,) = previews(config, install_template(copy.deepcopy(tokenizer), "plain"), 1)
    return [token.text for token in view.tokens if token.supervised]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama2", ["<f0>", "<9f>", "<99>", "<82>", " a", " b", "</s>"]),
        ("mistral", ["<f0>", "<9f>", "<99>", "<82>", " a", " b", "</s>"]),
        ("gpt2", ["<f0>", "<9f>", "<99>", "<82>", " a", " b", "</s>"]),
    ],
)
def test_bytes_are_bytes_and_spaces_are_seen(
    tmp_path: Path, family: str, expected: list[str]
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"prompt": "smile", "completion": "🙂 a b"}))
    assert shown(FAMILIES[family](), path) == expected


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_what_a_tokenizer_cannot_write_is_a_finding(tmp_path: Path, unknown: str | None) -> None:
    """Left out without a word, or trained as an unknown token."""
    path = tmp_path / "d.jsonl"
    records = [{"prompt": "a word", "completion": text} for text in ("a", "caf é", "日本 é", "b")]
    path.write_text("\n".join(map(json.dumps, records)))
    config = load_config(
        "gpt2-tiny-cpu", [f"data.path={path}", "model.tokenizer=unused", "data.eval_fraction=0"]
    )
    template = install_template(lossy(unknown), "plain")
    for _ in range(2):  # the second from the cache
        facts = audit(config, template, prepare(config, template))
        assert facts["unwritten_characters"] == {"é": 2, "日": 1, "本": 1}
        (finding,) = [f for f in facts["findings"] if f["name"] == "unwritten"]
        assert finding["records"] == 2
        assert "é 日 本" in finding["message"]
    whole = install_template(FAMILIES["llama2"](), "plain")
    assert audit(config, whole, prepare(config, whole))["findings"] == []


def test_a_date_that_cannot_be_fixed_and_an_empty_answer_are_findings(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    words = ("q", "", "r", "a")
    roles = ("user", "assistant") * 2
    turns = [{"role": r, "content": w} for r, w in zip(roles, words, strict=True)]
    path.write_text(json.dumps({"messages": turns}))
    jinja = tmp_path / "t.jinja"
    jinja.write_text(
        "{% set form = '%Y' %}{{ strftime_now(form) }}{% for m in messages %}{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    )
    options = [f"data.path={path}", "model.tokenizer=unused", "data.eval_fraction=0"]
    config = load_config("gpt2-tiny-cpu", options)
    template = install_template(FAMILIES["gpt2"](), str(jinja))
    facts = audit(config, template, prepare(config, template))
    assert {f["name"]: f["records"] for f in facts["findings"]} == {
        "moving_date": 1,
        "empty_answer": 1,
    }
