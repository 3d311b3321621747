"""`raysft align` as a person types it: a stage that fails leaves the ones before, and the chain
goes on from there."""

from pathlib import Path

from transformers import AutoModelForCausalLM

from raysft.runs import rundir
from tests.conftest import Outcome, run_raysft

SMALL = (
    "model.tokenizer=none", "model.init=pretrained", "model.shape=none", "batch.seq_len=64",
    "batch.tokens_per_micro_batch=256", "run.max_steps=2", "run.samples=1", "log.every_steps=1",
    "checkpoint.every_steps=1", "batch.global_batch_size=8", "eval.max_records=4",
    "eval.exact_match_records=4", "align.sft.run.max_steps=3",
    "align.pairs.pairs.reward=mine.py:vowels", "align.pairs.pairs.samples=16",
    "align.pairs.pairs.max_new_tokens=16", "align.reward.run.max_steps=2",
    "align.ppo.run.max_steps=2", "align.ppo.batch.global_batch_size=8", "align.ppo.ppo.group=4",
    "align.ppo.ppo.max_new_tokens=16", "align.ppo.ppo.checker=mine.py:vowels",
)  # fmt: skip
MINE = """
def vowels(prompt, answer, reference):
    return sum(letter in "aeiou" for letter in answer)


def fails(prompt, answer, reference):
    return 1 / 0
"""


def typed(model: Path, folder: Path, env: dict[str, str], *words: str) -> Outcome:
    (folder / "mine.py").write_text(MINE)
    if not (folder / "base").exists():  # a relative path, and workers that start elsewhere
        (folder / "base").symlink_to(model)
    records = model.parent / "records.json"
    values = ["model.path=base", *(f"{key}={records}" for key in (
        "data.path", "align.pairs.data.path", "align.ppo.data.path",
    )), *SMALL]  # fmt: skip
    sets = [word for value in values for word in ("--set", value)]
    return run_raysft(
        "align", "align-demo", "--name", "chain", *sets, *words, "--json",
        cwd=folder, timeout=600, **env,
    )  # fmt: skip


def test_the_chain_goes_on_after_a_stage_that_failed(
    tiny_model: Path, tmp_path: Path, running_ray: dict[str, str]
) -> None:
    failed = typed(tiny_model, tmp_path, running_ray, "--set", "align.ppo.ppo.reward=mine.py:fails")
    chain = tmp_path / "runs/chain"
    assert failed.code == 1, failed.stderr  # 2 would say that nothing was done
    assert failed.stderr.count("error: ppo: ") == 1
    assert "mine.py:fails fails with ZeroDivisionError" in " ".join(failed.stderr.split())
    assert [rundir.status(chain / name) for name in ("sft", "pairs", "reward")] == ["done"] * 3
    before = {
        name: (chain / name / rundir.SUMMARY).read_bytes() for name in ("sft", "pairs", "reward")
    }

    ran = typed(tiny_model, tmp_path, running_ray, "--resume")
    assert ran.code == 0, ran.stderr
    for name, content in before.items():
        assert f"{name} has ended before: it is taken as it is" in ran.stderr
        assert (chain / name / rundir.SUMMARY).read_bytes() == content
    assert "stage 4 of 4: ppo" in ran.stderr
    stages = ran.summary["stages"]
    assert [one["steps"] for one in stages.values()] == [3, None, 2, 2]
    assert ran.summary["model_dir"] == "runs/chain/ppo/model"
    assert not (chain / rundir.METRICS).exists()
    report = (chain / rundir.REPORT).read_text()
    assert "[ppo](ppo/report.md)" in report
    assert "rewards.png" in report
    AutoModelForCausalLM.from_pretrained(chain / "ppo/model")
    again = run_raysft("report", "runs/chain", cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert (chain / rundir.REPORT).read_text() == report
