"""The audit's numbers against counts by hand, and each defect against a clean set."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysft.config.load import load_config
from raysft.data.audit import audit, histogram
from raysft.data.dataset import prepare
from raysft.data.template import install_template


def audited(tokenizer: Any, path: Path, *overrides: str) -> dict[str, Any]:
    config = load_config(
        "gpt2-tiny-cpu",
        [
            f"data.path={path}",
            "model.tokenizer=unused",
            "data.on_bad_record=skip",
            "data.eval_fraction=0.1",
            *overrides,
        ],
    )
    template = install_template(copy.deepcopy(tokenizer), config.data.template)
    return audit(config, template, prepare(config, template))


CLEAN = [{"prompt": f"What is {i} + {i}?", "completion": f"It is {2 * i}."} for i in range(40)]
DEFECTS: dict[str, Any] = {
    "dropped: malformed": "{not json",
    "dropped: malformed ": b'{"prompt": "\xff", "completion": "a"}',
    "dropped: field 'completion' is bool, not text": {"prompt": "q", "completion": True},
    "dropped: a record is a JSON object, but this is list": [1, 2],
    "dropped: the response is empty": {"prompt": "q?", "completion": " "},
    "responses_truncated": {"prompt": "Count.", "completion": "1 2 3 " * 200},
    "end_token_missing": {"prompt": "Count down.", "completion": "3 2 1 " * 200},
    "prompts_truncated": {"prompt": "very " * 200 + "long?", "completion": "Yes."},
    "duplicates": CLEAN[0],
    "blank_prompt": {"prompt": " \n", "completion": "Once upon a time."},
    "special_in_text": {"prompt": "What is <|endoftext|>?", "completion": "The end."},
}


def names(facts: dict[str, Any]) -> set[str]:
    found = set()
    for finding in facts["findings"]:
        is_drop = finding["name"] == "dropped"
        reason = finding["message"].removeprefix("left out: ").partition(" (first")[0]
        found.add(f"dropped: {reason}" if is_drop else finding["name"])
        assert finding["records"] > 0
        assert finding["advice"]
    return found


def write(path: Path, records: list[Any]) -> Path:
    """JSON lines; a text or bytes is a line as it is."""
    raw = [r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode()
           for r in records]  # fmt: skip
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def test_a_clean_set_has_no_findings(tokenizer: Any, tmp_path: Path) -> None:
    facts = audited(tokenizer, write(tmp_path / "d.jsonl", CLEAN))
    assert facts["findings"] == []
    assert (facts["num_read"], facts["num_dropped"]) == (40, 0)
    assert facts["num_records"] + facts["num_eval_records"] == facts["num_conversations"] == 40
    assert facts["end_token_supervised"] == 40


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_found(tokenizer: Any, tmp_path: Path, defect: str) -> None:
    records = [*CLEAN[:20], DEFECTS[defect], *CLEAN[20:]]
    facts = audited(tokenizer, write(tmp_path / "d.jsonl", records), "data.eval_fraction=0")
    cut = {"responses_truncated", "end_token_missing"}
    assert names(facts) == (cut if defect in cut else {defect.strip()})
    if defect.startswith("dropped"):
        assert facts["num_dropped"] == 1
        assert list(facts["first_dropped"].values()) == [f"{tmp_path / 'd.jsonl'} line 21"]


def test_defects_of_conversations(tokenizer: Any, tmp_path: Path) -> None:
    def turns(*words: str, **last: Any) -> dict[str, Any]:
        roles = ("user", "assistant") * 2
        result = [{"role": r, "content": w} for r, w in zip(roles, words, strict=False)]
        result[-1] |= last
        return {"messages": result}

    clean = [turns(f"q{i}", f"a{i}") for i in range(10)]
    records = [*clean, turns("q", "a", "unanswered?"), turns("q", "a", weight=0), turns("alone")]
    facts = audited(tokenizer, write(tmp_path / "d.jsonl", records), "data.eval_fraction=0")
    assert names(facts) == {"unanswered", "dropped: no answer to train on"}
    assert facts["dropped"] == {"no answer to train on": 2}


def test_a_prompt_that_ends_in_a_space_is_found(tokenizer: Any, tmp_path: Path) -> None:
    """Where the template ends a prompt with its words, or with a space of its own."""
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' -%}"
                        "{{ eos_token }}{% endif %}{% endfor %}")  # fmt: skip
    records = [{"prompt": f"Q{i}: ", "completion": "yes"} for i in range(3)] + CLEAN
    path = write(tmp_path / "d.jsonl", records)
    options = (f"data.template={template}", "data.eval_fraction=0")
    facts = audited(tokenizer, path, *options)
    assert (names(facts), facts["space_before_answer"]) == ({"space_before_answer"}, 3)


def test_held_out_records_that_are_trained_on_are_found(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", CLEAN)
    facts = audited(tokenizer, path, f"data.eval_path={write(tmp_path / 'e.jsonl', CLEAN[:3])}")
    assert names(facts) == {"heldout_in_train"}
    assert facts["heldout_in_train"] == 3
    doubled = write(tmp_path / "f.jsonl", CLEAN * 2)
    assert {"duplicates", "heldout_in_train"} == names(audited(tokenizer, doubled))
    assert names(audited(tokenizer, doubled, "data.drop_duplicates=true")) == set()


def test_an_unreadable_rest_is_found(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(CLEAN)[:-2])
    facts = audited(tokenizer, path)
    assert facts["num_conversations"] == 39
    assert names(facts) == {f"dropped: the rest of {path} is lost"}


def test_numbers_by_hand(tokenizer: Any, tmp_path: Path) -> None:
    """Prompt "qqq" and its line break are 4 bytes; an answer has its end token."""
    sizes = [(3, 1), (3, 2), (7, 11), (700, 5), (3, 600)]
    records = [{"prompt": "q" * q, "completion": "a" * a} for q, a in sizes]
    path = write(tmp_path / "d.jsonl", records)
    facts = audited(tokenizer, path, "batch.seq_len=16", "data.eval_fraction=0")
    assert facts["prompt_tokens"] == {
        "mean": 144.2,
        "p50": 4.0,
        "p95": pytest.approx(562.4),
        "max": 701,
    }
    assert facts["response_tokens"]["mean"] == pytest.approx((2 + 3 + 12 + 6 + 601) / 5)
    assert facts["response_tokens"]["max"] == 601
    # Kept: 4+2, 4+3, 4+12 of 8+12, 10+6 of 701+6, 4+12 of 4+601.
    assert facts["tokens"] == 6 + 7 + 16 + 16 + 16
    assert facts["supervised_tokens"] == 2 + 3 + 12 + 6 + 12
    assert facts["prompt_loss_share"] == 0
    weighted = audited(
        tokenizer, path, "batch.seq_len=16", "data.eval_fraction=0", "data.prompt_loss_weight=0.5"
    )
    prompts = 3 + 3 + 3 + 9 + 3  # nothing predicts the first token
    assert weighted["prompt_loss_share"] == pytest.approx(0.5 * prompts / (0.5 * prompts + 35))
    assert facts["at"]["16"]["prompts_truncated"] == 2
    assert facts["at"]["16"]["responses_truncated"] == 1
    assert facts["at"]["512"]["prompts_truncated"] == 1
    assert facts["at"]["512"]["responses_truncated"] == 1
    assert facts["at"]["1024"]["prompts_truncated"] == 0
    assert facts["at"]["16"]["padding_share"] == pytest.approx(1 - 61 / 80)
    assert facts["at"]["16"]["packing_padding_share"] == pytest.approx(1 - 61 / 64)
    assert facts["at"]["1024"]["padding_share"] == pytest.approx(
        1 - (6 + 7 + 20 + 707 + 605) / 5120
    )
    assert facts["end_token_supervised"] == 4


def test_histogram_counts_every_record_once() -> None:
    bins = histogram({"prompt": np.array([0, 8, 9, 16, 17]), "response": np.array([64])})
    assert bins == {"up_to": [8, 16, 32, 64], "prompt": [2, 2, 1, 0], "response": [0, 0, 0, 1]}
