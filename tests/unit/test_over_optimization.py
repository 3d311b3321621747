"""What `bench over-optimization` makes of curves whose turn is known by construction."""

import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.studies.over_optimization.curves import parts_of, row_of, turns
from raysft.studies.over_optimization.report import COLUMNS, STUDY, verdict
from raysft.studies.over_optimization.run import point_config, points
from raysft.verbs.registry import VERBS

VERB = VERBS["bench over-optimization"]
ITERATIONS = 50


def case(beta: float, seed: int, peak: float, noise: float = 0.02) -> dict[str, Any]:
    """The reward rises all the time; the checker's by 0.4 up to `peak` of the run, and from there
    down again as steeply."""
    source = random.Random(f"{beta} {seed}")
    drawn = []
    for number in range(ITERATIONS):
        gone = number / (ITERATIONS - 1)
        checked = 0.4 + 0.4 * (gone if gone <= peak else 2 * peak - gone)
        drawn.append({
            "reward": gone + source.gauss(0, noise), "checked": checked + source.gauss(0, noise),
            "kl_to_reference": 5 * gone - 0.01, "entropy": 1.0, "answer_tokens": 5.0,
        })  # fmt: skip
    return {"beta": beta, "seed": seed, "status": "done", "error": None, "drawn": drawn,
            "observed": {}}  # fmt: skip


def results(*cases: dict[str, Any]) -> dict[str, Any]:
    config = load_config("bench-over-optimization").model_dump(mode="json")
    stamp = {"command": "raysft bench over-optimization x", "utc": "2026-01-01", "version": "1"}
    return {"study": "over-optimization", "stamp": stamp, "config": config, "cases": list(cases)}


def test_a_turn_is_found_and_measured() -> None:
    """From a part around 0.5 to the last one, around 1: 0.4 x 0.5 down, and 0.5 up."""
    found = results(*(case(0.0, seed, peak=0.5) for seed in range(4)))
    row = row_of(found, 0.0)
    assert row.turned is not None
    assert row.meanwhile is not None
    assert row.turned.mean == pytest.approx(0.2, abs=0.03)
    assert row.meanwhile.mean == pytest.approx(0.5, abs=0.05)
    assert row.first.checked == pytest.approx(0.4, abs=0.04)
    told = verdict(found)
    assert "with beta 0 while the reward rose" in told


@pytest.mark.parametrize(("peak", "says"), [(0.5, "confirmed"), (1.0, "not seen here")])
def test_the_ends_of_two_betas_are_held_against_each_other(peak: float, says: str) -> None:
    """By seeds: of two that are as good as each other nothing is said."""
    loose = [case(0.0, seed, peak=peak) for seed in range(4)]
    tight = [case(0.1, seed, peak=1.0) for seed in range(4)]
    for one in tight:
        for line in one["drawn"]:
            line["reward"] -= 0.2
    told = verdict(results(*loose, *tight))
    assert "With beta 0 against beta 0.1, at the end, the reward differs by +0.2" in told
    assert f"loses what was wanted is {says}" in told


def test_noise_is_no_turn() -> None:
    """Of a run's own best part the last one is always worse; the other runs' best is another."""
    own, lost = [], []
    for study in range(16):
        flat = [case(0.1, 100 * study + seed, peak=0.0, noise=0.1) for seed in range(6)]
        for one in flat:
            for line in one["drawn"]:
                line["checked"] += 0.4 * line["kl_to_reference"] / 5
        own += [max(p.checked for p in parts_of(run)) - parts_of(run)[-1].checked for run in flat]
        lost += [found for found, _ in turns(flat)]
    assert min(own) >= 0
    assert statistics.fmean(own) > 0.08
    assert abs(statistics.fmean(lost)) < 0.03


def test_one_seed_is_not_judged() -> None:
    told = verdict(results(case(0.0, 0, peak=0.5), case(0.1, 0, peak=1.0)))
    assert "(one seed): that a reward" in told
    assert "is not judged by one seed." in told
    assert "From its best" not in told


def test_what_failed_is_told_and_left_out(tmp_path: Path) -> None:
    broken = {"beta": 0.1, "seed": 0, "status": "failed", "error": "out of memory"}
    found = results(*(case(0.0, seed, peak=0.5) for seed in range(3)), broken)
    STUDY.write_report(found, tmp_path)
    text = (tmp_path / rundir.REPORT).read_text()
    assert "- beta 0.1, seed 0 failed: out of memory" in text
    assert (tmp_path / "over-optimization.png").stat().st_size > 10_000
    assert [point.label for point in STUDY.points(found)] == ["beta 0"]
    assert all(column.heading in text for column in COLUMNS)
    alone = results(broken)
    STUDY.write_report(alone, tmp_path)
    assert verdict(alone) == "No run went to its end, so there is nothing to tell."


def test_points_and_what_they_differ_in() -> None:
    config = load_config("bench-over-optimization", ["bench.betas=[0.1, 0.0]", "bench.seeds=2"])
    listed = points(config)
    assert [(point["beta"], point["seed"]) for point in listed] == [
        (0.0, 0), (0.0, 1), (0.1, 0), (0.1, 1),
    ]  # fmt: skip
    at = point_config(config, listed[-1])
    assert (at.ppo.beta, at.run.seed, at.log.every_steps) == (0.1, 1, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.checker=none", "set ppo.checker, which is watched beside ppo.reward"),
        ("ppo.stop_kl=3", "ppo.stop_kl would end the runs before"),
        ("model.dropout=0.1", "another distribution than the one that is trained"),
    ],
)
def test_what_cannot_be_compared_is_told(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VERB.plan(load_config("bench-over-optimization", [override]))
