"""`raysft bench` as a person runs it; the usual case is tested with the README."""

import json
from pathlib import Path

from tests.conftest import run_raysft

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


def test_wrong_lengths_are_told_before_anything_starts(tmp_path: Path) -> None:
    words = ("bench", "seq-len", "bench-seq-len", *sets("bench.seq_lens=[512, 2048]"))
    outcome = run_raysft(*words, cwd=tmp_path)
    assert outcome.code == 2
    assert "bench.seq_lens: 2048 is past model.shape.n_positions 1024" in outcome.stderr
    assert not (tmp_path / "runs").exists()
