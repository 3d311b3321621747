"""What a model answers while it is trained is what it would answer if it ended there."""

import json
from pathlib import Path

import pytest

from raysft.runs import rundir
from tests.conftest import Outcome, run_raysft

SETTINGS = (
    "batch.seq_len=64", "batch.global_batch_size=8", "data.eval_fraction=0.25", "run.samples=3",
    "eval.exact_match_records=12", "eval.every_steps=0", "optim.lr=2e-3", "schedule.name=constant",
    "schedule.warmup_steps=0", "checkpoint.every_steps=0", "model.init=pretrained",
    "model.tokenizer=none",
)  # fmt: skip


ADAPTER = ("adapter.rank=8", "adapter.variant=dora", "optim.lr=2e-2")


@pytest.mark.parametrize(("workers", "stage", "more"), [(1, 1, ()), (2, 3, ()), (2, 3, ADAPTER)])
def test_answers_on_the_way(
    tiny_model: Path,
    tmp_path: Path,
    running_ray: dict[str, str],
    workers: int,
    stage: int,
    more: tuple[str, ...],
) -> None:
    def typed(name: str, *sets: str) -> Outcome:
        records = tiny_model.parent / "records.json"
        values = (
            f"model.path={tiny_model}", f"data.path={records}", f"scaling.workers={workers}",
            f"engine.zero_stage={stage}", *SETTINGS, *more, *sets,
        )  # fmt: skip
        words = [word for value in values for word in ("--set", value)]
        ran = run_raysft(
            "train", "gpt2-tiny-cpu", "--name", name, *words, "--json", cwd=tmp_path, timeout=600,
            **running_ray,
        )  # fmt: skip
        assert ran.code == 0, ran.stderr
        return ran

    whole = typed(
        "whole", "run.max_steps=12", "eval.generate_every_steps=4",
        "checkpoint.keep_best=exact_match",
    )  # fmt: skip
    part = typed("part", "run.max_steps=8")
    folder = tmp_path / "runs/whole"
    told = [json.loads(line) for line in (folder / rundir.SAMPLES).read_text().splitlines()]
    assert [line["step"] for line in told] == [4] * 3 + [8] * 3 + [12] * 3
    names = ("instruction", "reference", "answer")
    midway = [{name: line[name] for name in names} for line in told if line["step"] == 8]
    assert midway == [{name: one[name] for name in names} for one in part.summary["samples"]]
    assert len({line["answer"] for line in told}) > 1
    lines = [json.loads(line) for line in (folder / rundir.METRICS).read_text().splitlines()]
    exact = {line["step"]: line["exact_match"] for line in lines if "exact_match" in line}
    assert exact.keys() == {4, 8, 12}
    assert exact[8] == part.summary["exact_match"]
    best = max(exact, key=lambda step: exact[step])  # the first of several
    assert whole.summary["model_step"] == best
    assert whole.summary["best_exact_match"] == exact[best] == whole.summary["exact_match"]
    assert whole.stderr.count("of the held-out answers after step") == 3
    assert len(whole.summary["samples"]) == 3
    report = (folder / rundir.REPORT).read_text()
    assert "## Answers on the way" in report
    assert "after step 4:" in report
    assert not (tmp_path / "runs/part" / rundir.SAMPLES).exists()
