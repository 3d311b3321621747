"""What `bench over-optimization` makes of curves whose turn is known by construction."""

import random
from pathlib import Path
from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.studies.over_optimization.curves import parts_of, row_of, turns
from raysft.studies.over_optimization.report import COLUMNS, STUDY, verdict, write_report
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
    """From the part around 0.5 to the last one, around 0.9: 0.4 x 0.4 down, and 0.4 up."""
    found = results(*(case(0.0, seed, peak=0.5) for seed in range(4)))
    row = row_of(found, 0.0)
    assert row.turned is not None
    assert row.meanwhile is not None
    assert row.turned.mean == pytest.approx(0.14, abs=0.02)
    assert row.meanwhile.mean == pytest.approx(0.4, abs=0.02)
    assert row.first.checked == pytest.approx(0.4, abs=0.04)
    assert "beta 0: confirmed, the checker's lost 0.1" in verdict(found)


def test_noise_is_no_turn() -> None:
    """Of a run's own best part the last one is always worse; the other runs' best is another."""
    flat = [case(0.1, seed, peak=0.0, noise=0.1) for seed in range(24)]
    for one in flat:
        for line in one["drawn"]:
            line["checked"] += 0.4 * line["kl_to_reference"] / 5
    own = [max(p.checked for p in parts_of(one)) - parts_of(one)[-1].checked for one in flat]
    assert min(own) >= 0
    assert sum(own) / len(own) > 0.02
    lost = [lost for lost, _ in turns(flat)]
    assert abs(sum(lost) / len(lost)) < 0.02
    assert "beta 0.1: not seen" in verdict(results(*flat))


def test_one_seed_is_not_judged() -> None:
    told = verdict(results(case(0.0, 0, peak=0.5)))
    assert "one seed, so not judged" in told
    assert "beta 0: the reward changed by +0.9" in told


def test_what_failed_is_told_and_left_out(tmp_path: Path) -> None:
    broken = {"beta": 0.1, "seed": 0, "status": "failed", "error": "out of memory"}
    found = results(*(case(0.0, seed, peak=0.5) for seed in range(3)), broken)
    write_report(found, tmp_path)
    text = (tmp_path / rundir.REPORT).read_text()
    assert "- beta 0.1, seed 0 failed: out of memory" in text
    assert (tmp_path / "over-optimization.png").stat().st_size > 10_000
    assert [point.label for point in STUDY.points(found)] == ["beta 0"]
    assert all(column.heading in text for column in COLUMNS)
    alone = results(broken)
    write_report(alone, tmp_path)
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
