"""`raysft ppo` as it is planned, checked and told about."""

import json
from pathlib import Path
from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.estimate.answers import beside_gib
from raysft.estimate.memory import GIB
from raysft.estimate.report import estimate
from raysft.estimate.shape import dims_of, parameters
from raysft.runs import rundir
from raysft.runtime.fit import total_steps
from raysft.studies.training.report import REWARDS
from raysft.train.objectives.ppo import ppo
from raysft.verbs.ppo import check, closing, done, drawn_rows
from raysft.verbs.registry import VERBS

ROWS = {"reward": 0.25, "checked": 0.5, "kl_to_reference": 0.0}


def planned(*overrides: str) -> dict[str, str]:
    return dict(VERBS["ppo"].plan(load_config("ppo-demo", overrides)))


def test_the_plan_says_what_is_looked_for() -> None:
    rows = planned("ppo.minibatches=2", "ppo.epochs=2", "ppo.missing_eos=0.5")
    assert rows["objective"] == "E[r] - 0.01 KL(pi, ref); ref: the model at the start"
    assert rows["reward"] == "demo, less 0.5 without an end token"
    assert rows["an iteration"].startswith("512 answers of at most 48 tokens = 64 prompts x 8; 4 ")
    assert rows["steps"] == "100 (run.max_steps) = 25 iterations"
    assert rows["global batch"].startswith("256 answers = packs")
    assert planned("ppo.advantage=critic")["compared with"] == "a critic, lambda 0.95"
    several = planned('ppo.reward=["exact", "demo"]', "ppo.reward_weights=[1.0, 0.5]")
    assert several["reward"] == "exact + 0.5 x demo"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dropout=0.1", "another distribution than the one that is trained"),
        ("batch.global_batch_size=20", "= 20 answers are no whole groups of ppo.group 8"),
        ("ppo.max_new_tokens=96", "leaves no room for a prompt in batch.seq_len 96"),
        ("ppo.epochs=3", "ends within an iteration, which has 3 steps"),
        ("data.prompt_loss_weight=0.5", "trains prompts"),
        ("model.init=scratch", "goes on from a model that has learnt something"),
    ],
)
def test_what_does_not_go_together_is_told_before_it_starts(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.group=1", 'advantage = "group" compares the answers to a prompt'),
        ("ppo.reward_weights=[1.0, 2.0]", "reward_weights has 2 numbers for 1 rewards"),
        ("ppo.reward=[]", "names no reward"),
        ("ppo.temperature=0", "ppo.temperature"),
    ],
)
def test_wrong_settings(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("ppo-demo", [override])


def test_rewards_that_are_not_there_are_told_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def short(prompt, answer, reference):\n    return 1\n")
    check(load_config("ppo-demo", [f"ppo.reward={tmp_path}/mine.py:short"]))
    for name in ("exakt", f"{tmp_path}/mine.py:long", f"{tmp_path}/other.py:short"):
        for key in ("ppo.reward", "ppo.checker"):
            with pytest.raises(UserError, match=f"^{key}: "):
                check(load_config("ppo-demo", [f"{key}={name}"]))


def test_an_epoch_is_of_prompts() -> None:
    config = load_config("ppo-demo", ["run.max_steps=none", "ppo.minibatches=2", "run.epochs=2"])
    assert config.prompts == 64
    assert total_steps(config, 100, ppo(config.ppo)) == 4 * 2  # 200 prompts, of which 64 at once


def test_the_last_words_are_of_the_rewards() -> None:
    summary: dict[str, Any] = {
        "status": "done", "steps": 3, "model_dir": "x/model", "run_dir": "x",
        "train_loss_first": 1.0, "train_loss_last": -1.0, "eval_loss_first": 0.5,
        "eval_loss_last": 0.25, "drawn_first": ROWS, "drawn_last": ROWS | {"reward": 0.75},
    }  # fmt: skip
    assert done(summary) == "done: 3 steps, reward 0.250 to 0.750; model in x/model"
    assert ("drawn answers, reward", "0.2500", "0.7500") in drawn_rows(summary)
    names = [name for name, _, _ in closing(summary)]
    assert "training loss" not in names
    assert "held-out loss" in names


def test_the_report_draws_rewards_over_the_distance(tmp_path: Path) -> None:
    spec = {"verb": "ppo", "config": load_config("ppo-demo").model_dump(mode="json"),
            "stamp": {"command": "raysft ppo ppo-demo", "utc": "now"}}  # fmt: skip
    (tmp_path / rundir.RUN).write_text(json.dumps(spec))
    lines = [{"step": n, "loss": 0.1, "kl_to_reference": 0.1 * n, **ROWS, "reward": 0.1 * n}
             for n in range(1, 5)]  # fmt: skip
    (tmp_path / rundir.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    write = VERBS["ppo"].write_report
    assert write is not None
    write(tmp_path)
    assert (tmp_path / REWARDS).stat().st_size > 10_000
    assert f"]({REWARDS})" in (tmp_path / rundir.REPORT).read_text()


def test_estimate_counts_what_is_held_beside_the_engine(tmp_path: Path) -> None:
    """By hand, of GPT-2 in bf16, 256 answers at once; and of a reward model in fp32."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    config = load_config("gpt2", [
        f'ppo.reward=["exact", "{tmp_path}"]', "ppo.group=8", "ppo.prompts_at_once=32",
        "engine.zero_stage=1", "batch.tokens_per_micro_batch=8192",
        "model.activation_checkpointing=false", "model.init=scratch", "model.tokenizer=none",
    ])  # fmt: skip
    dims, count = dims_of(config), 124_439_808
    assert sum(parameters(dims).values()) == count
    found = beside_gib(config, dims)
    assert found == {
        "copy and reference": 2 * 2 * count / GIB,
        "reward models": 4 * count / GIB,
        "keys and values": 2 * 2 * 12 * 768 * 256 * 512 / GIB,
    }
    told = estimate(config, memory_gib=40, answers=True)
    assert told["device_memory_gib"] == pytest.approx(40 - sum(found.values()))
    work = told["iteration_flops"]
    assert work["training"] == pytest.approx(3 * work["drawing"])
    assert estimate(config, memory_gib=40)["device_memory_gib"] == 40
