"""`raysft align`: what each stage of the chain is given, and what may change when it goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.studies.training.chain import write_chain_report
from raysft.verbs.align import ALIGN, check_resume, summary_of
from raysft.verbs.stages import STAGES, stage_config, state

SFT, PAIRS, REWARD, PPO = STAGES
STAMP = {"command": "raysft align align-demo --name x", "version": "1", "utc": "2026-01-01"}


def demo(*overrides: str) -> Config:
    return load_config("align-demo", ["run.name=x", *overrides])


def test_stages_read_what_the_ones_before_have_made(tmp_path: Path) -> None:
    found = {stage.name: stage_config(demo(), stage, tmp_path) for stage in STAGES}
    assert found["sft"].model.init == "scratch"
    for name in ("pairs", "reward", "ppo"):
        model = found[name].model
        assert (model.path, model.init) == (str(tmp_path / "sft/model"), "pretrained")
        assert model.tokenizer is None
        assert model.shape is None
    paths = {name: config.data.path for name, config in found.items()}
    assert paths == {
        "sft": "runs/careless/careless.jsonl",
        "pairs": "demo",
        "reward": str(tmp_path / "pairs/pairs.jsonl"),
        "ppo": "demo",
    }
    assert found["pairs"].data.max_records == 3000
    assert found["reward"].data.max_records is None
    assert found["ppo"].ppo.reward == str(tmp_path / "reward")
    assert {name: config.run.name for name, config in found.items()} == {n: n for n in found}
    assert {config.run.storage for config in found.values()} == {str(tmp_path)}
    # Tables of a stage are over the common ones, and of that stage alone.
    assert [found[name].optim.lr for name in found] == [3e-3, 3e-3, 1e-3, 3e-4]
    assert found["ppo"].optim.cpu_kernel == "torch"


def test_a_stage_may_name_a_reward_of_its_own(tmp_path: Path) -> None:
    given = stage_config(demo('align.ppo.ppo.reward=["exact"]'), PPO, tmp_path)
    assert given.ppo.rewards == (("exact", 1.0),)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("align.ppo.optim.lrr=1e-3", r"align\.ppo: the config is not valid\n +optim\.lrr: no such"),
        ("align.reward.data.path=x.jsonl", r"align\.reward\.data\.path: the stages before decide"),
        ("align.ppo.model.path=other", r"align\.ppo\.model\.path: the stages before decide it"),
        ("align.pppo.optim.lr=1e-3", r"align\.pppo: no such key"),
        ("align.ppo.optim=3", r"align\.ppo\.optim: input should be"),
        ("align.ppo.run.max_steps=0", r"align\.ppo: the config is not valid"),
        ("align.ppo.batch.global_batch_size=20", "are no whole groups of ppo.group 8"),
        ("align.pairs.pairs.reward=nowhere", "pairs: pairs.reward"),
        ("align.ppo.ppo.checker=nowhere", "ppo: ppo.checker"),
        ("align.ppo.data.path=nowhere.jsonl", "ppo: data.path"),
        ("align.pairs.data.path=nowhere.jsonl", "pairs: data.path"),
    ],
)
def test_a_mistake_in_any_stage_is_told_before_the_first(
    override: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        examine(f"run.storage={tmp_path}", override)


def examine(*overrides: str) -> None:
    """As the command does, before anything is written; the last one is the mistake."""
    config = demo("data.path=demo", "model.tokenizer=demo", *overrides)
    ALIGN.plan(config)
    ALIGN.check(config)


def test_the_plan_shows_each_stage() -> None:
    rows = dict(ALIGN.plan(demo()))
    assert rows["stages"] == "4, each a run of its own in runs/x/"
    assert rows["sft"] == "raysft train: steps 600 (run.max_steps) x 64 = 38,400 records seen"
    assert rows["pairs"].endswith("of at most 64 tokens; reward demo")
    assert rows["ppo"].endswith("= 60 iterations; reward runs/x/reward")


def ended(folder: Path, config: Config, *names: str, status: str = "done") -> None:
    """Folders of these stages, as runs leave them."""
    (folder / rundir.RUN).write_text(json.dumps({"verb": "align", "config": {"a": 1}}))
    for stage in STAGES:
        if stage.name not in names:
            continue
        run_dir = folder / stage.name
        spec = stage_config(config, stage, folder).model_dump(mode="json")
        rundir.write_run(run_dir, {"verb": stage.verb.name, "config": spec, "stamp": STAMP})
        rundir.write_json(run_dir / rundir.SUMMARY, {"status": status, "steps": 3})


def test_a_chain_goes_on_where_it_was(tmp_path: Path) -> None:
    config = demo()
    ended(tmp_path, config, "sft", "pairs")
    ended(tmp_path, config, "reward", status="failed")
    states = [state(stage, tmp_path / stage.name) for stage in STAGES]
    assert states == ["done", "done", "none", "none"]
    assert check_resume(tmp_path, config) == []
    # What a stage that has ended does not depend on may change, and so may the ones to come.
    free = ("scaling.workers=2", "align.reward.optim.lr=1e-4", "log.every_steps=1")
    assert check_resume(tmp_path, demo(*free)) == []


@pytest.mark.parametrize(
    ("override", "stage"),
    [
        ("align.sft.optim.lr=1e-4", "sft"),
        ("data.path=other.jsonl", "sft"),
        ("align.pairs.pairs.samples=4", "pairs"),
        ("run.max_steps=500", "sft"),
    ],
)
def test_a_stage_that_has_ended_cannot_become_another(
    override: str, stage: str, tmp_path: Path
) -> None:
    ended(tmp_path, demo(), "sft", "pairs")
    with pytest.raises(UserError, match=f"the stage {stage} has ended, with other settings"):
        check_resume(tmp_path, demo(override))


@pytest.mark.parametrize(
    ("code", "summary", "started", "kind"),
    [
        (2, {"status": "failed", "error": "no such file"}, False, "UserError"),
        # Or the command would put back the folder, and with it the stages that have ended.
        (2, {"status": "failed", "error": "no such file"}, True, "RunError"),
        (1, {"status": "failed", "error": "out of memory"}, False, "RunError"),
        (130, {"status": "interrupted"}, True, "KeyboardInterrupt"),
        (1, None, True, "RunError"),
    ],
)
def test_a_stage_that_fails_ends_the_chain_as_it_ended(
    code: int, summary: dict[str, Any] | None, started: bool, kind: str
) -> None:
    from raysft.runs.events import End

    ends = [] if summary is None else [End(code, summary, None)]
    with pytest.raises(BaseException, match=r"pairs: |^$") as caught:
        summary_of(PAIRS, ends, code, started=started)
    assert type(caught.value).__name__ == kind


def test_the_report_of_a_chain(tmp_path: Path) -> None:
    config = demo()
    ended(tmp_path, config, *(stage.name for stage in STAGES))
    rundir.write_run(tmp_path, {"verb": "align", "config": {"x": 1}, "stamp": STAMP})
    for name in ("sft", "reward", "ppo"):
        (tmp_path / name / rundir.REPORT).touch()
    told = {
        stage.name: {"outcome": f"{stage.name} | well", "wall_s": 61.0, "exact_match": 0.5}
        for stage in STAGES
    }
    write_chain_report(tmp_path, told)
    text = (tmp_path / rundir.REPORT).read_text()
    assert text.startswith(f"# {tmp_path.name}: 4 stages in 4:04\n")
    assert "| [sft](sft/report.md) | sft \\| well | 1:01 |" in text
    assert "| pairs | pairs \\| well | 1:01 |" in text
    assert "| after | exact match |" in text
    assert "raysft align align-demo --name x" in text
