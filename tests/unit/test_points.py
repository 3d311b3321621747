"""How far a study is and what it took, by hand; tests/ray runs studies."""

import pytest

from raysft.studies import pace
from raysft.studies.hardware import machine_of
from raysft.studies.pace import Pace


def test_the_rest_of_a_study_takes_as_long_as_what_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """15 points, two at a time, of which three were there before --resume; 100 s each."""
    now = 1000.0
    monkeypatch.setattr(pace.time, "monotonic", lambda: now)
    found = Pace(3, 12, at_once=2)
    start = found.after(0)
    assert (start.total, start.ended, start.at_once, start.seconds_left) == (15, 3, 2, None)
    now += 99
    assert found.after(1).seconds_left is None  # of the two, one may have just begun
    now += 1
    assert found.after(1).seconds_left == pytest.approx(10 * 100 / 2)
    now += 500
    end = found.after(10)
    assert (end.ended, end.seconds_left) == (15, 0)


def test_a_study_of_one_point_tells_at_its_end() -> None:
    found = Pace(0, 1, at_once=8)
    assert found.after(0).at_once == 1
    assert found.after(1).seconds_left == 0


def test_the_facts_of_a_report_tell_how_long_its_points_took() -> None:
    config = {"scaling": {"gpus_per_worker": 0}}
    cases = [{"observed": None, "seconds": seconds} for seconds in (60.0, 90.0, 61.0)]
    assert machine_of(config, cases) == [
        ("time", "3 points of 1:01 in the median, 3:31 one by one")
    ]
    assert machine_of(config, [{"observed": None}]) == []  # results from before it was measured
