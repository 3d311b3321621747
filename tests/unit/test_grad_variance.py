"""Report of `bench grad-variance`, of results whose truth is known; what it refuses."""

import copy
from pathlib import Path
from typing import Any

import pytest

from raysft.cli.terminal import stdout
from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.studies.compare import compare
from raysft.studies.grad_variance.report import PAGE, PLOT, STUDY, verdict
from raysft.studies.grad_variance.rows import exponent_of, rows_of
from raysft.studies.grad_variance.run import check, point_config, points
from raysft.studies.page import markdown
from raysft.studies.points import values
from raysft.studies.results import finished, write

LENGTHS, SHARDS = (64, 256, 1024), 16


def moments(trace: float, square: float) -> dict[str, float]:
    """Those that have these estimates exactly, of shards of one sequence."""
    mean = square + trace / SHARDS
    return {"square_of_mean": mean, "mean_square": mean + trace * (SHARDS - 1) / SHARDS}


def case(seed: int, power: float, square: float = 2.0) -> dict[str, Any]:
    """tr(Sigma) of the sum is (3 + seed) T^power, and the mean loss is the sum over T."""
    at = [
        {
            "seq_len": length, "loss": 5.0, "shards": SHARDS, "shard_size": 1,
            "summed": moments((3 + seed) * length**power, square * length**2),
            "mean": moments((3 + seed) * length ** (power - 2), square),
        }
        for length in LENGTHS
    ]  # fmt: skip
    names = ("before training", "after warmup", "at the end")
    measured = [{"when": name, "step": step, "at": at} for step, name in enumerate(names)]
    return {"seed": seed, "status": "done", "error": None, "measured": measured, "observed": None}


def results(*cases: dict[str, Any]) -> dict[str, Any]:
    return {
        "study": "grad-variance", "stamp": {"command": "raysft bench grad-variance x"},
        "config": load_config("bench-grad-variance").model_dump(mode="json"), "cases": list(cases),
    }  # fmt: skip


def test_known_exponents_are_found() -> None:
    found = results(case(0, 1.0), case(1, 1.1), case(2, 0.9))
    summed = exponent_of(found, "at the end", "summed")
    mean = exponent_of(found, "at the end", "mean")
    assert summed is not None
    assert mean is not None
    assert (summed.mean, mean.mean) == pytest.approx((1.0, -1.0))
    assert summed.high == pytest.approx(1 + 4.303 * 0.1 / 3**0.5)
    assert "holds for that sum" in verdict(found)
    assert "the variance falls with T" in verdict(found)


def test_a_claim_that_does_not_hold_is_told() -> None:
    found = results(case(0, 1.5), case(1, 1.51), case(2, 1.52))
    assert "T^1.51 (1.49 to 1.53)" in verdict(found)
    assert "does not hold for that sum: it grows faster" in verdict(found)
    assert "is not judged by one seed" in verdict(results(case(0, 1.5)))


def test_rows_by_hand() -> None:
    rows = rows_of(results(case(0, 1.0), case(1, 1.0)))
    assert len(rows) == 3 * 2 * len(LENGTHS)
    last = rows[-1]
    assert (last.when, last.loss, last.seq_len) == ("at the end", "mean", 1024)
    assert last.variance.mean == pytest.approx(12**0.5 / 1024)
    assert last.norm is not None
    assert last.norm.mean == pytest.approx(2**0.5)
    assert last.noise_scale is not None
    assert last.noise_scale.mean == pytest.approx(12**0.5 / 1024 / 2)


def test_the_batch_that_follows_is_told() -> None:
    noisy = results(case(0, 2.0, square=0.3 / 8))  # a noise scale of 3 / (0.3 / 8) = 80
    told = verdict(noisy)
    assert "the noise scale is 80 (one run, no interval) sequences" in told
    assert "One of 8, as set, needs 11.00 times the fewest steps and 1.1 times the fewest" in told


def test_a_gradient_that_noise_hides_is_no_number() -> None:
    found = results(case(0, 1.0, square=-0.1))
    assert all(row.noise_scale is None for row in rows_of(found))
    assert "noise hides the gradient: more bench.examples" in verdict(found)
    assert "hidden by noise" in markdown(PAGE, found)


def test_report_and_comparison(tmp_path: Path) -> None:
    failed = {"seed": 2, "status": "failed", "error": "a worker died"}
    found = results(case(0, 1.0), case(1, 1.0), failed)
    STUDY.write_report(found, tmp_path)
    text = (tmp_path / rundir.REPORT).read_text()
    assert "- seed 2 failed: a worker died" in text
    assert f"]({PLOT})" in text
    assert (tmp_path / PLOT).stat().st_size > 10_000
    assert len(list(STUDY.tables(found))) == 2
    noisier = copy.deepcopy(found)
    for measured in noisier["cases"][0]["measured"]:
        for at in measured["at"]:
            at["summed"] = moments(1e9, 2.0)
    pair = (tmp_path / "a", found), (tmp_path / "b", noisier)
    assert compare(STUDY, *pair, tolerance=0.1, out=stdout)
    assert not compare(STUDY, pair[0], pair[0], tolerance=0.1, out=stdout)


def test_nothing_that_ended_is_told_as_such(tmp_path: Path) -> None:
    found = results({"seed": 0, "status": "failed", "error": "a worker died"})
    assert verdict(found) == "No run went to its end, so there is nothing to tell."
    STUDY.write_report(found, tmp_path)
    assert not (tmp_path / PLOT).exists()
    assert list(STUDY.tables(found)) == []


def test_a_seed_that_failed_is_run_again_and_others_are_not(tmp_path: Path) -> None:
    assert finished(tmp_path) == []
    write(tmp_path, results(case(0, 1.0), {"seed": 1, "status": "failed", "error": "died"}))
    before = finished(tmp_path)
    assert [one["seed"] for one in before] == [0]
    listed = points(load_config("bench-grad-variance", ["run.seed=0", "bench.seeds=3"]))
    known = {values(one, listed[0]) for one in before}
    assert [point["seed"] for point in listed if tuple(point.values()) not in known] == [1, 2]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["scaling.workers=2", "bench.shard_size=3"], "bench.shard_size 3 is not a multiple of"),
        (["bench.examples=9", "bench.shard_size=4"], "bench.examples 9 is not a multiple of 4"),
        (["bench.examples=1"], "bench.examples 1: take 2 or more"),
        (["bench.examples=4", "bench.shard_size=4"], "take 8 or more, two shards of 4"),
        (["engine.precision=fp16"], "drops gradients that overflow"),
    ],
)
def test_what_tells_no_variance_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check(load_config("bench-grad-variance", overrides))


def test_a_length_that_the_model_or_a_pack_has_no_room_for_is_refused() -> None:
    for overrides, told in (
        (["model.shape.n_positions=512"], "past model.shape.n_positions 512"),
        (["batch.tokens_per_micro_batch=1500", "bench.seq_lens=[64, 2000]"], "2000"),
    ):
        raw = load_config("bench-grad-variance", ["batch.seq_len=64", *overrides])
        with pytest.raises(UserError, match=told):
            point_config(raw, points(raw)[0])
