"""From a model's answers to pairs, a reward model and DPO, as a person types it."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.conftest import Outcome, run_raysft

SMALL = (
    "batch.seq_len=64", "batch.tokens_per_micro_batch=256", "batch.global_batch_size=8",
    "eval.max_records=8", "eval.exact_match_records=4", "run.samples=0", "log.every_steps=1",
)  # fmt: skip


def typed(verb: str, model: Path, folder: Path, env: dict[str, str], *sets: str) -> Outcome:
    values = (f"model.path={model}", *SMALL, *sets)
    words = [word for value in values for word in ("--set", value)]
    return run_raysft(verb, "dpo-demo", *words, "--json", cwd=folder, timeout=600, **env)


def test_the_chain_from_answers_to_dpo(
    tiny_model: Path, tmp_path: Path, running_ray: dict[str, str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "def long(prompt, answer, reference):\n    return len(answer)"
    )
    made = []
    for workers in (1, 2):  # the same pairs, whoever draws the answers
        asked = typed(
            "pairs", tiny_model, tmp_path, running_ray, f"run.name=by{workers}",
            f"data.path={tiny_model.parent / 'records.json'}", "pairs.reward=mine.py:long",
            "pairs.max_new_tokens=24", "pairs.samples=64", f"scaling.workers={workers}",
            "pairs.prompts_at_once=8",
        )  # fmt: skip
        assert asked.code == 0, asked.stderr
        made.append(Path(asked.summary["pairs"]))
    file = tmp_path / made[0]
    assert file.read_bytes() == (tmp_path / made[1]).read_bytes()
    pairs = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(pairs) == asked.summary["num_pairs"] > 20
    for pair in pairs:
        assert pair["score_chosen"] == len(pair["chosen"][0]["content"]) > pair["score_rejected"]

    learn = (
        f"data.path={file}",
        "run.max_steps=2",
        "scaling.workers=1",
        "checkpoint.every_steps=2",
    )
    rewarded = typed("reward", tiny_model, tmp_path, running_ray, *learn, "run.name=reward")
    assert rewarded.code == 0, rewarded.stderr
    assert rewarded.summary["measures_last"]["eval_accuracy"] is not None
    out = run_raysft("export", "runs/reward", "--to", "again", cwd=tmp_path)
    assert out.code == 0, out.stderr
    one, other = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        for folder in ("runs/reward/model", "again")
    )
    weights = other.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in one.state_dict().items())
    for folder in ("runs/reward/model", "again"):
        card = (tmp_path / folder / "README.md").read_text()
        assert "pipeline_tag: text-classification" in card
    assert "raysft generate" not in rewarded.stderr
    report = (tmp_path / "runs/reward/report.md").read_text()
    assert "| held-out pairs, accuracy |" in report

    scored = typed(
        "pairs", tiny_model, tmp_path, running_ray, "run.name=scored", "data.max_records=4",
        f"data.path={tiny_model.parent / 'records.json'}", "pairs.reward=runs/reward",
        "pairs.max_new_tokens=24", "pairs.samples=64", "scaling.workers=1",
    )  # fmt: skip
    assert scored.code == 0, scored.stderr

    tuned = typed("dpo", tiny_model, tmp_path, running_ray, *learn, "run.name=dpo")
    assert tuned.code == 0, tuned.stderr
    assert 0 < tuned.summary["exact_match_records"] <= 4
    assert tuned.summary["measures_first"]["eval_accuracy"] == 0.5  # ties with the reference
    assert tuned.summary["measures_last"]["eval_kl"] != 0.0
    AutoModelForCausalLM.from_pretrained(tmp_path / "runs/dpo/model")


def test_bad_pairs_are_one_message_with_file_and_line(
    tiny_model: Path, tmp_path: Path, running_ray: dict[str, str]
) -> None:
    sound = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"})
    file = tmp_path / "d.jsonl"
    file.write_text(f'{sound}\n{sound}\n{{"prompt": "q", "chosen": 3, "rejected": "b"}}\n')
    outcome = typed("reward", tiny_model, tmp_path, running_ray, f"data.path={file}")
    assert outcome.code == 2
    assert outcome.stderr.count("d.jsonl line 3: field 'chosen' is int") == 1
    assert "Traceback" not in outcome.stderr
