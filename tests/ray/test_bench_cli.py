"""`raysft bench` as a person runs it; the usual case is tested with the README."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import run_raysft
from tests.ray.test_errors_cli import check, wait_for

GIB = 2**30
SMALL = (
    "bench.synthetic=false", "bench.steps=1", "bench.warmup_steps=1", "batch.packing=false",
    "batch.global_batch_size=1", "batch.tokens_per_micro_batch=none",
    "model.attention=eager", "engine.precision=fp32",
    "model.shape={n_layer = 1, n_embd = 32, n_head = 8, n_positions = 30000}",
)  # fmt: skip


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def test_a_case_without_memory_is_a_row_and_the_others_end(tmp_path: Path) -> None:
    """Eager attention over 30,000 tokens asks for 27 GiB at once; no process gets more than 32."""
    lengths = sets(*SMALL, "bench.seq_lens=[1000, 30000]")
    outcome = run_raysft(
        "bench", "seq-len", "bench-seq-len", "--name", "b", "--json", *lengths,
        cwd=tmp_path, address_space=32 * GIB,
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    assert outcome.summary["cases"] == {"done": 2, "out of memory": 1, "failed": 0}
    results = json.loads((tmp_path / "runs/b/results.json").read_text())
    short, same_tokens, long = results["cases"]
    assert (long["seq_len"], long["status"]) == (30_000, "out of memory")
    assert "out of memory" in outcome.stderr
    for case in (short, same_tokens):
        assert len(case["step_times_s"]) == len(case["warmup_times_s"]) == 1
        assert case["peak_memory_gib"] > case["memory_gib"]["process"] > 0.1
        assert case["peak"]["flops_per_second"] > 1e9
    # The demo's records, joined: some of their tokens are supervised, and some are not.
    assert 100 < short["supervised_tokens"] < 900
    assert same_tokens["tokens"] == 30_000
    report = (tmp_path / "runs/b/report.md").read_text()
    assert "| 30,000 | 1 | out of memory |" in report
    assert (tmp_path / "runs/b/seq-len.png").exists()

    # As if it had been killed after the first case: that one, and what had no memory, are kept.
    file = tmp_path / "runs/b/results.json"
    file.write_text(json.dumps(results | {"cases": [short, long]}))
    words = ("bench", "seq-len", "bench-seq-len", "--name", "b", "--json", "--resume")
    refused = run_raysft(*words, *lengths, "--set", "bench.steps=2", cwd=tmp_path)
    check(refused, 2, "runs that differ from those it has", "bench.steps: 1 then, 2 now")
    again = run_raysft(*words, *lengths, cwd=tmp_path, address_space=32 * GIB)
    assert again.code == 0, again.stderr
    first, second, third = json.loads(file.read_text())["cases"]
    assert (first, third) == (short, long)
    assert (second["seq_len"], second["sequences"]) == (1000, same_tokens["sequences"])
    assert second["step_times_s"] != same_tokens["step_times_s"]
    assert "case 3 of 3" in again.stderr
    assert "1 of 3 points; 2 were there already" in again.stderr
    assert "were there already" not in outcome.stderr
    assert "case 2 of 3" not in again.stderr


def test_wrong_lengths_are_told_before_anything_starts(tmp_path: Path) -> None:
    words = ("bench", "seq-len", "bench-seq-len", *sets("bench.seq_lens=[512, 2048]"))
    outcome = run_raysft(*words, cwd=tmp_path)
    assert outcome.code == 2
    assert "bench.seq_lens: 2048 is past model.shape.n_positions 1024" in outcome.stderr
    assert not (tmp_path / "runs").exists()


BRIEF = (
    "bench.seq_lens=[32, 64]", "bench.examples=4", "bench.seeds=2", "run.max_steps=3",
    "schedule.warmup_steps=1", "batch.global_batch_size=2", "tune.max_concurrent=1",
)  # fmt: skip


def test_a_killed_study_goes_on_and_repeats_no_finished_point(tmp_path: Path) -> None:
    """Killed with the first of two seeds measured."""
    words = ["bench", "grad-variance", "bench-grad-variance", "--name", "g", *sets(*BRIEF)]
    file = tmp_path / "runs/g/results.json"

    def cases() -> list[dict[str, Any]]:
        return json.loads(file.read_text())["cases"] if file.exists() else []

    command = [Path(sys.executable).parent / "raysft", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: bool(cases()), timeout_s=400)
    psutil.Process(process.pid).children()[0].kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "seed 0" in stderr
    (kept,) = cases()

    refused = run_raysft(*words, "--resume", "--set", "optim.lr=1e-4", cwd=tmp_path)
    check(refused, 2, "runs that differ from those it has", "optim.lr: 0.003 then, 0.0001 now")
    outcome = run_raysft(*words, "--resume", "--json", cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr
    assert outcome.summary["cases"] == {"done": 2, "failed": 0}
    assert "seed 0" not in outcome.stderr  # it was not measured again
    first, second = cases()
    assert first == kept
    assert second["seed"] == 1
    assert [m["when"] for m in second["measured"]] == [
        "before training", "after warmup", "at the end",
    ]  # fmt: skip
    assert first["measured"] != second["measured"]
    assert "over 2 seeds" in outcome.summary["verdict"]
    assert not (tmp_path / "runs/g/points").exists()
    assert not (tmp_path / "runs/g/tune").exists()


FEW_LADDERS = (
    "bench.lrs=[1e-3, 1e-2, 300.0, 1e3]", "bench.warmup_ratios=[0.0]", "bench.max_grad_norms=[0.3]",
    'bench.precisions=["bf16"]', "bench.seeds=1", "run.max_steps=8", "batch.global_batch_size=4",
    "eval.max_records=8",
)  # fmt: skip


def test_a_ladder_of_rates_ends_at_divergence(tmp_path: Path) -> None:
    """Its runs start alike, though they share their workers. A second seed is added on --resume."""
    words = ["bench", "stability", "bench-stability", "--name", "s", *sets(*FEW_LADDERS), "--json"]
    outcome = run_raysft(*words, cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr
    assert outcome.summary["cases"] == {"done": 1, "failed": 0}
    (only,) = json.loads((tmp_path / "runs/s/results.json").read_text())["cases"]
    runs = only["runs"]
    assert [(run["lr"], run["diverged"]) for run in runs] == [
        (1e-3, False), (1e-2, False), (300.0, True),
    ]  # fmt: skip
    assert 1 <= runs[-1]["diverged_step"] <= 8
    assert runs[0]["steps"] == runs[1]["steps"] == 8
    assert 0 < runs[0]["clipped_steps"] <= 8
    assert 0.5 < runs[0]["moment_ratio_p50"] < 2
    assert runs[1]["eval_loss"] < runs[0]["eval_loss"] < 7
    assert "diverged at 300" in outcome.stderr
    assert (tmp_path / "runs/s/stability.png").exists()

    again = run_raysft(*words, "--resume", "--set", "bench.seeds=2", cwd=tmp_path)
    assert again.code == 0, again.stderr
    first, second = json.loads((tmp_path / "runs/s/results.json").read_text())["cases"]
    assert first == only
    assert second["seed"] == 1
    assert "seed 0" not in again.stderr
    assert run_raysft("bench", "report", "runs/s", cwd=tmp_path).code == 0
    same = run_raysft("bench", "compare", "runs/s", "runs/s", cwd=tmp_path)
    assert same.code == 0, same.stderr
