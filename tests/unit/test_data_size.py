"""Points, subsets and report of `bench data-size`, of results whose truth is known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysft.config.load import load_config
from raysft.data.dataset import TokenDataset
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.studies.data_size.report import PLOT, STUDY, verdict
from raysft.studies.data_size.rows import (
    bias_of,
    cases_of,
    jackknifed,
    power_of,
    rows_of,
    variance_of,
)
from raysft.studies.data_size.run import check, points, sizes, subset

PRESET = "bench-data-size"


def test_sizes_double_up_to_all() -> None:
    config = load_config(PRESET, ["bench.data_sizes=none"])
    assert sizes(config, 750) == [100, 200, 400, 750]
    with pytest.raises(UserError, match=r"60 .* no two sizes from 100 on.* = \[15, 60\]"):
        sizes(config, 60)
    assert sizes(load_config(PRESET, ["bench.data_sizes=[30, 10]"]), 40) == [10, 30]
    with pytest.raises(UserError, match="6,400 is more than the 500 training records"):
        sizes(load_config(PRESET), 500)


def test_points_are_matched_with_the_largest() -> None:
    settings = ["bench.data_sizes=[100, 400]", "run.max_steps=10", "bench.seeds=1", "run.seed=3"]
    listed = points(load_config(PRESET, settings), 500)
    assert [tuple(point.values()) for point in listed] == [
        (100, "steps", 10, 3), (100, "epochs", 3, 3), (400, "steps", 10, 3),
    ]  # fmt: skip


def test_a_smaller_subset_is_part_of_a_larger() -> None:
    lengths = np.arange(2, 42)
    starts = np.cumsum(lengths) - lengths
    ids, masks = np.zeros(lengths.sum(), np.int32), np.ones(lengths.sum(), np.bool_)
    answers, source = lengths - 1, np.zeros(40, np.uint16)
    all_of_them = TokenDataset(ids, masks, starts, lengths, answers, source)
    small, large = (subset(all_of_them, count, seed=1) for count in (5, 20))
    assert small.lengths.tolist() == large.lengths[:5].tolist()
    assert len(set(large.lengths.tolist())) == 20
    assert small.answers.tolist() == (small.lengths - 1).tolist()
    assert subset(all_of_them, 5, seed=2).lengths.tolist() != small.lengths.tolist()


def test_the_parts_of_the_loss_by_hand() -> None:
    """Two models that give a token 1/2 and 1/8: their mean gives 5/16."""
    two = [[math.log(2)], [math.log(8)]]
    assert bias_of(two) == pytest.approx(-math.log(5 / 16))
    assert bias_of(two) + variance_of(two) == pytest.approx((math.log(2) + math.log(8)) / 2)
    alike = [[1.0, 2.0], [1.0, 2.0]]
    assert (bias_of(alike), variance_of(alike)) == pytest.approx((1.5, 0.0))


def test_few_subsets_tell_the_parts_of_all_that_there_could_be() -> None:
    """Losses of 1 nat whose noise is small: bias and variance of endless subsets are known."""
    generator, spread, tokens = np.random.default_rng(0), 0.1, 20_000
    for count in (3, 5):
        losses = (1 + spread * generator.standard_normal((count, tokens))).tolist()
        variance, bias = jackknifed(variance_of, losses), jackknifed(bias_of, losses)
        assert variance_of(losses) == pytest.approx((1 - 1 / count) * spread**2 / 2, rel=0.05)
        assert variance.mean == pytest.approx(spread**2 / 2, rel=0.05)
        assert variance.mean + bias.mean == pytest.approx(float(np.mean(losses)))
        assert variance.low is not None
        assert variance.low < variance.mean < (variance.high or 0)
    two = jackknifed(variance_of, losses[:2])
    assert two.mean == pytest.approx(spread**2 / 2, rel=0.05)
    assert two.words(".3f").endswith("(2 runs, no interval)")


def case(records: int, matched: str, seed: int, loss: float) -> dict[str, Any]:
    return {
        "records": records, "matched": matched, "steps": 10 if matched == "steps" else 5,
        "seed": seed, "status": "done", "error": None, "eval_loss": loss, "train_loss": 0.5,
        "exact_match": 0.25, "asked": 8, "parameters": 3000, "observed": None,
        "token_losses": [loss, loss + 0.1 * seed],
    }  # fmt: skip


def results(*cases: dict[str, Any]) -> dict[str, Any]:
    return {
        "study": "data-size", "stamp": {"command": "raysft bench data-size x"},
        "config": load_config(PRESET).model_dump(mode="json"), "cases": list(cases),
    }  # fmt: skip


def power_law(power: float, stops_at: int = 10**9) -> dict[str, Any]:
    """Losses of 8 n^-power, which fall no further from some size on."""
    cases = []
    for records in (100, 400, 1600):
        for seed in range(3):
            # The noise differs by size, or nothing would be left of it in pairs.
            noise = 1 + 0.001 * ((seed + records // 400) % 3)
            loss = noise * 8 * min(records, stops_at) ** -power
            cases.append(case(records, "steps", seed, loss))
            if records < 1600:
                cases.append(case(records, "epochs", seed, 2 * loss))
    return results(*cases)


def test_a_known_power_law_is_found() -> None:
    found = power_law(0.3)
    power = power_of(found, "steps")
    assert power is not None
    assert power.mean == pytest.approx(0.3, abs=0.002)
    assert "n^-0.30" in verdict(found)
    assert "at equal optimizer steps, within a factor of 1.00" in verdict(found)
    assert "More records still paid at 1,600" in verdict(found)
    assert len(cases_of(found, "epochs")) == 9  # the largest is matched by both
    assert "asked for far more than" in verdict(found)


def test_where_more_records_stop_paying_is_told() -> None:
    told = verdict(power_law(0.3, stops_at=400))
    assert "more than 400 records lower it no further" in told
    # In logarithms the losses lie at 0, -1 and -1 times c = 0.3 log 4, the line at -1/6, -4/6 and
    # -7/6 of it: the farthest is c / 3 away.
    assert f"within a factor of {4 ** (0.3 / 3):.2f}, and" in told
    assert "not judged by one seed" in verdict(
        results(case(100, "steps", 0, 2.0), case(400, "steps", 0, 1.0))
    )
    assert "nothing to tell" in verdict(results(case(100, "steps", 0, 2.0)))


def test_rows_by_hand() -> None:
    rows = rows_of(power_law(0.5), "steps")
    assert [row.records for row in rows] == [100, 400, 1600]
    assert rows[0].gain is None
    assert rows[1].gain is not None
    assert rows[1].gain.mean == pytest.approx(-0.4, abs=0.01)
    assert rows[0].gap.mean == pytest.approx(rows[0].heldout.mean - 0.5)
    assert rows[0].variance is not None
    assert rows[0].variance.mean > 0


def test_one_subset_tells_no_variance(tmp_path: Path) -> None:
    found = results(case(100, "steps", 0, 2.0), case(400, "steps", 0, 1.0))
    assert [(row.bias, row.variance) for row in rows_of(found, "steps")] == [(None, None)] * 2
    assert "is not told by one subset" in verdict(found)
    STUDY.write_report(found, tmp_path)
    assert (tmp_path / PLOT).exists()


def test_report_and_points(tmp_path: Path) -> None:
    failed = {"records": 400, "matched": "epochs", "steps": 5, "seed": 9, "status": "failed",
              "error": "it died"}  # fmt: skip
    found = power_law(0.3)
    found["cases"].append(failed)
    STUDY.write_report(found, tmp_path)
    text = (tmp_path / rundir.REPORT).read_text()
    assert "- 400 records, equal epochs, seed 9 failed: it died" in text
    assert (tmp_path / PLOT).stat().st_size > 10_000
    labels = [point.label for point in STUDY.points(found)]
    assert len(set(labels)) == len(labels) == 5
    assert len(list(STUDY.tables(found))) == 2


def test_what_compares_nothing_is_refused() -> None:
    check(load_config(PRESET, ["bench.data_sizes=none"]))
    with pytest.raises(UserError, match="data_sizes has one size: take two or more"):
        check(load_config(PRESET, ["bench.data_sizes=[100]"]))
    with pytest.raises(UserError, match=r"run.max_steps is not set"):
        check(load_config(PRESET, ["run.max_steps=none"]))
    with pytest.raises(UserError, match="no record is held out"):
        check(load_config(PRESET, ["data.eval_fraction=0.0"]))
