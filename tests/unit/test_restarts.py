"""What a restart cost, told from the events of a run."""

import time

from raysft.runtime.restarts import Restarts


def test_a_restart_is_told_part_by_part() -> None:
    restarts = Restarts()
    first = [{"event": "placed"}, {"event": "workers", "world_size": 2}]
    first += [{"event": "started", "step": 0}, {"event": "first_step"}]
    assert [restarts.see(event) for event in first] == [None] * 4  # the first start is none
    restarts.see({"event": "restart", "message": "lost worker 1"})
    time.sleep(0.1)
    restarts.see({"event": "restart", "message": "lost worker 0"})  # before it was over
    restarts.see({"event": "placed"})
    time.sleep(0.2)
    restarts.see({"event": "workers", "world_size": 1})
    restarts.see({"event": "started", "step": 40})
    told = restarts.see({"event": "first_step"})
    assert told is not None
    assert (told["reason"], told["workers"], told["step"]) == ("lost worker 1", 1, 40)
    placing, loading, *_ = told["parts"].values()
    assert 0.1 <= placing < 0.2 <= loading < 0.3
    assert abs(sum(told["parts"].values()) - told["seconds"]) < 0.05
    assert [restart["step"] for restart in restarts.listed] == [40]
    assert restarts.see({"event": "first_step"}) is None
