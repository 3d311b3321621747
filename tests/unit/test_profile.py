"""Phases count every second once."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from raysft.train import profile as module
from raysft.train.profile import Profile, phase, timed


def test_phases_are_exclusive_and_sum_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0

    def pass_time(seconds: int) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(now)))
    profile = Profile(2, tmp_path / "profile", torch.device("cpu"))
    rows = None
    for _ in range(3):
        assert rows is None
        with phase("forward"):
            pass_time(3)
            timed(pass_time)(2)
            pass_time(1)
        with phase("optimizer"):
            pass_time(5)
        pass_time(7)
        rows = profile.step_ends()
    assert rows is not None
    seconds = {row["phase"]: row["seconds"] for row in rows if row["seconds"]}
    assert seconds == {"forward": 8, "communication": 4, "optimizer": 10, "other": 14}
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert (tmp_path / "profile/trace.json").stat().st_size > 1000
    with phase("forward"):  # over: nothing is counted any more
        pass_time(9)
    assert profile.seconds["forward"] == 8
