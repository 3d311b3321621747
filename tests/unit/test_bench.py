"""Cases, data and report of `raysft bench seq-len`."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysft.cli.terminal import stdout
from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.studies.compare import compare
from raysft.studies.numbers import percentile
from raysft.studies.results import read
from raysft.studies.seq_len.cases import Case, case_config, cases, longest
from raysft.studies.seq_len.report import STUDY, markdown, verdict, write_report
from raysft.studies.seq_len.rows import rows_of
from raysft.studies.seq_len.sequences import joined
from raysft.studies.seq_len.sequences import rows_of as dataset_of


def test_both_tables_share_their_longest_case() -> None:
    config = load_config("bench-seq-len")
    assert cases(config) == [
        Case(512, 4, ("sequences",)),
        Case(512, 8, ("tokens",)),
        Case(640, 4, ("sequences",)),
        Case(640, 6, ("tokens",)),  # 6.4
        Case(768, 4, ("sequences",)),
        Case(768, 5, ("tokens",)),  # 5.3
        Case(896, 4, ("sequences",)),
        Case(896, 5, ("tokens",)),  # 4.6
        Case(1024, 4, ("sequences", "tokens")),
    ]
    two = load_config("bench-seq-len", ["scaling.workers=2", "bench.seq_lens=[640, 1024]"])
    assert [case.sequences for case in cases(two)] == [4, 6, 4]
    with pytest.raises(UserError, match="not a multiple"):
        cases(load_config("bench-seq-len", ["scaling.workers=3"]))


def test_micro_batches_hold_whole_sequences() -> None:
    config = load_config("bench-seq-len")
    by_length = {case.seq_len: case_config(config, case).batch for case in cases(config)}
    assert {length: batch.pack_tokens // length for length, batch in by_length.items()} == {
        512: 4, 640: 3, 768: 2, 896: 2, 1024: 2,
    }  # fmt: skip
    assert all(batch.pack_tokens % length == 0 for length, batch in by_length.items())
    by_sequences = load_config("bench-seq-len", ["batch.tokens_per_micro_batch=none"])
    assert all(case_config(by_sequences, c).batch.pack_tokens == c.seq_len for c in cases(config))
    with pytest.raises(UserError, match=r"past batch.tokens_per_micro_batch 512"):
        longest(load_config("bench-seq-len", ["batch.tokens_per_micro_batch=512"]))


def test_records_are_joined_end_to_end() -> None:
    ids = np.arange(10, dtype=np.int32).reshape(2, 5)
    masks = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]], dtype=np.bool_)
    rows = joined(dataset_of(ids, masks), length=4, count=4, seed=0)
    flat = rows.input_ids.tolist()
    assert len(flat) == 16
    assert sorted(flat[:10]) == list(range(10))  # all of them before any comes again
    assert [flat[i + 1] - flat[i] for i in range(4)] == [1, 1, 1, 1]
    mask_of = dict(zip(ids.flatten().tolist(), masks.flatten().tolist(), strict=True))
    assert rows.loss_mask.tolist() == [mask_of[token] for token in flat]
    by_hand = [sum(mask_of[token] for token in flat[4 * r + 1 : 4 * r + 4]) for r in range(4)]
    assert rows.supervised.tolist() == by_hand


@pytest.mark.parametrize("percent", [0, 50, 95, 100])
def test_percentiles_are_numpys(percent: float) -> None:
    values = [3.0, 1.0, 7.0, 2.0]
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))
    assert percentile([], percent) is None


def case(seq_len: int, sequences: int, tables: list[str], times: list[float]) -> dict[str, Any]:
    tokens = seq_len * sequences
    return {
        "seq_len": seq_len, "sequences": sequences, "tables": tables, "tokens": tokens,
        "supervised_tokens": tokens / 2, "workers": 1, "status": "done", "error": None,
        "peak": {"flops_per_second": 1e9, "copied_bytes_per_second": 1e10},
        "warmup_times_s": [9.0], "step_times_s": times, "peak_memory_gib": 2.0,
        "memory_gib": {"process": 0.5, "model states": 1.0}, "observed": None, "products": None,
        "predicted": {
            "flops": {"linear": 1e5 * tokens, "attention": 100.0 * tokens * seq_len, "head": 0.0},
            "memory_gib": {"weights": 1.0, "activations": 1.5},
        },
    }  # fmt: skip


@pytest.fixture
def results() -> dict[str, Any]:
    failed = case(2000, 1, ["tokens"], [])
    failed |= {"status": "out of memory", "error": "out of memory: ...", "peak": None}
    failed |= {"peak_memory_gib": None}
    return {
        "study": "seq-len", "title": "a model", "stamp": {"command": "raysft bench seq-len x"},
        "config": load_config("bench-seq-len").model_dump(mode="json"),
        "cases": [
            case(500, 2, ["sequences"], [1.0, 2.0, 1.5]),
            case(500, 4, ["tokens"], [4.0]),
            case(1000, 2, ["sequences", "tokens"], [4.0, 3.0, 5.0]),
            failed,
        ],
    }  # fmt: skip


def test_rows_by_hand(results: dict[str, Any]) -> None:
    short, long = rows_of(results, "sequences")
    assert (short.step_p50_s, short.ratio, short.predicted_ratio) == (1.5, 1.0, 1.0)
    assert short.tokens_per_second == pytest.approx(1000 / 1.5)
    assert short.supervised_tokens_per_second == pytest.approx(500 / 1.5)
    # 1,000 tokens of 1e5 + 100 x 500 FLOPs, in 1.5 s, of a peak of 1e9.
    assert short.mfu == pytest.approx(1000 * 1.5e5 / 1.5 / 1e9)
    assert long.ratio == pytest.approx(4.0 / 1.5)
    assert long.predicted_ratio == pytest.approx(2000 * 2e5 / (1000 * 1.5e5))
    assert long.predicted_memory_gib == 2.5
    # A token of 1,000 tokens against one of 400 x 4: 4 s for 2,000 to 3 s for 1,600.
    results["cases"][1] |= {"seq_len": 400, "tokens": 1600, "step_times_s": [3.0]}
    results["cases"][1]["predicted"]["flops"] = {"linear": 1e5 * 1600, "attention": 0.0}
    _, equal, failed = rows_of(results, "tokens")
    assert equal.ratio == pytest.approx((4.0 / 2000) / (3.0 / 1600))
    assert equal.predicted_ratio == pytest.approx(2e5 / 1e5)
    assert (failed.ratio, failed.status) == (None, "out of memory")


def test_the_verdict(results: dict[str, Any]) -> None:
    assert verdict(results) == (
        "A sequence of 1,000 tokens costs 2.67 times one of 500, not the 4 times of O(T²): by "
        "FLOPs 2.67 times were predicted, because attention is only 50% of them at 1,000."
    )
    results["cases"][0]["step_times_s"] = []
    assert "no ratio" in verdict(results)


def test_a_case_that_failed_is_a_row(results: dict[str, Any], tmp_path: Path) -> None:
    text = markdown(results, "plot.png")
    (row,) = [line for line in text.splitlines() if "out of memory" in line]
    assert row.startswith("| 2,000 | 1 |")
    write_report(results, tmp_path)
    assert (tmp_path / "seq-len.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "report.md").read_text() == markdown(results, "seq-len.png")


def test_comparing(results: dict[str, Any], tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps(results))

    def against(change: str, value: Any, tolerance: float = 0.1) -> int:
        other = copy.deepcopy(results)
        other["cases"][0][change] = value
        second.write_text(json.dumps(other))
        return compare(STUDY, read(first), read(second), tolerance, stdout)

    assert against("step_times_s", [1.6]) == 0
    assert against("step_times_s", [1.7]) == 1
    assert against("step_times_s", [1.7], tolerance=0.2) == 0
    assert against("step_times_s", [0.5]) == 0  # faster
    assert against("peak_memory_gib", 2.3) == 1
    assert against("status", "failed") == 1


def test_what_is_no_result_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results.json: No such file"):
        read(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="holds no results"):
        read(tmp_path)
