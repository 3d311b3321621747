"""`raysft ppo` as a person types it."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from raysft.runs import rundir, snapshot
from tests.conftest import Outcome, run_raysft

SMALL = (
    "batch.seq_len=64", "batch.tokens_per_micro_batch=256", "batch.global_batch_size=8",
    "ppo.group=4", "ppo.max_new_tokens=16", "eval.max_records=4", "eval.exact_match_records=4",
    "run.samples=1", "log.every_steps=1", "run.max_steps=4", "checkpoint.every_steps=2",
    "scaling.workers=1", "ppo.checker=exact", "ppo.advantage=critic",
)  # fmt: skip
VOWELS = """
def vowels(prompt, answer, reference):
    return sum(letter in "aeiou" for letter in answer)


def fails(prompt, answer, reference):
    return 1 / 0
"""


def typed(model: Path, folder: Path, env: dict[str, str], name: str, *sets: str) -> Outcome:
    (folder / "mine.py").write_text(VOWELS)
    data = f"data.path={model.parent / 'records.json'}"
    values = (f"model.path={model}", data, "ppo.reward=mine.py:vowels", *SMALL, *sets)
    words = [word for value in values for word in ("--set", value)]
    return run_raysft(
        "ppo", "ppo-demo", "--name", name, *words, "--json", cwd=folder, timeout=600, **env
    )


def test_a_run_from_rewards(tiny_model: Path, tmp_path: Path, running_ray: dict[str, str]) -> None:
    ran = typed(tiny_model, tmp_path, running_ray, "one")
    assert ran.code == 0, ran.stderr
    summary, folder = ran.summary, tmp_path / "runs/one"
    assert summary["steps"] == 4
    for end in ("first", "last"):
        drawn = summary[f"drawn_{end}"]
        assert {"reward", "checked", "kl_to_reference", "explained_variance"} <= set(drawn)
    assert 0 < summary["exact_match_records"] <= 4
    assert "drawn answers" in ran.stderr
    report = (folder / rundir.REPORT).read_text()
    assert "rewards.png" in report
    assert "training loss" not in report
    card = (folder / rundir.MODEL / "README.md").read_text()
    assert "on rewards of its own answers to instructions" in card
    assert "- ppo\n" in card
    lines = [json.loads(line) for line in (folder / rundir.METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    # The value head stays in the checkpoints: both exports are models for generation.
    out = run_raysft("export", "runs/one", "--to", "again", cwd=tmp_path)
    assert out.code == 0, out.stderr
    one, other = (
        AutoModelForCausalLM.from_pretrained(tmp_path / place).state_dict()
        for place in ("runs/one/model", "again")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

    strays = ("ppo.stop_kl=0.01", "ppo.beta=0", "optim.lr=0.02", "schedule.warmup_ratio=0.0")
    far = typed(tiny_model, tmp_path, running_ray, "far", *strays)
    assert far.code == 0, far.stderr
    assert 1 < far.summary["steps"] < 4  # the first answers are the reference's own
    assert "beyond ppo.stop_kl: the run ends after this step" in far.stderr
    assert max(snapshot.checkpoints_by_step(tmp_path / "runs/far")) == far.summary["steps"]


def test_a_reward_that_fails_is_one_message(
    tiny_model: Path, tmp_path: Path, running_ray: dict[str, str]
) -> None:
    ran = typed(tiny_model, tmp_path, running_ray, "bad", "ppo.reward=mine.py:fails")
    assert ran.code == 2
    assert "mine.py:fails fails with ZeroDivisionError" in " ".join(ran.stderr.split())
    assert "for the answer" in ran.stderr
    assert "Traceback" not in ran.stderr
    early = typed(tiny_model, tmp_path, running_ray, "none", "ppo.reward=mine.py:other")
    assert early.code == 2
    assert "mine.py has no function 'other'" in early.stderr
    assert not (tmp_path / "runs/none").exists()


def test_how_far_a_reward_can_be_followed(
    tiny_model: Path, tmp_path: Path, running_ray: dict[str, str]
) -> None:
    """Two betas; of a model that is named relative to where the study is typed."""
    (tmp_path / "base").symlink_to(tiny_model)
    (tmp_path / "mine.py").write_text(VOWELS)
    values = (
        f"data.path={tiny_model.parent / 'records.json'}", *SMALL, "model.path=base",
        "ppo.reward=mine.py:vowels", "bench.betas=[0.0, 0.5]", "bench.seeds=1",
        "ppo.advantage=group",
    )  # fmt: skip
    words = [word for value in values for word in ("--set", value)]
    ran = run_raysft(
        "bench", "over-optimization", "bench-over-optimization", "--name", "far", *words, "--json",
        cwd=tmp_path, timeout=600, **running_ray,
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert ran.summary["cases"] == {"done": 2, "failed": 0}
    results = json.loads((tmp_path / "runs/far" / rundir.RESULTS).read_text())
    assert [case["beta"] for case in results["cases"]] == [0.0, 0.5]
    for case in results["cases"]:
        assert len(case["drawn"]) == 4
        assert {"reward", "checked", "kl_to_reference"} <= case["drawn"][0].keys()
    first, second = (case["drawn"] for case in results["cases"])
    assert first[0]["reward"] == second[0]["reward"]  # the same answers, before any step
    assert first[-1]["reward"] != second[-1]["reward"]
    assert "not judged by one seed" in ran.summary["verdict"]
    assert (tmp_path / "runs/far/over-optimization.png").exists()
