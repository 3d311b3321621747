"""What a restart cost, told from the events of a run."""

import time

from raysft.runs.events import FirstStep, Placed, Restart, Started, Workers
from raysft.runtime.restarts import Restarts


def workers(world_size: int) -> Workers:
    return Workers(world_size, 10, "Adam", None, "rss", {}, {})


def test_a_restart_is_told_part_by_part() -> None:
    restarts = Restarts()
    first = [Placed("a"), workers(2), Started(0), FirstStep()]
    assert [restarts.see(event) for event in first] == [None] * 4  # the first start is none
    restarts.see(Restart("lost worker 1"))
    time.sleep(0.1)
    restarts.see(Restart("lost worker 0"))  # before it was over
    restarts.see(Placed("a"))
    time.sleep(0.2)
    restarts.see(workers(1))
    restarts.see(Started(40))
    told = restarts.see(FirstStep())
    assert told is not None
    assert (told.reason, told.workers, told.step) == ("lost worker 1", 1, 40)
    placing, loading, *_ = told.parts.values()
    assert 0.1 <= placing < 0.2 <= loading < 0.3
    assert abs(sum(told.parts.values()) - told.seconds) < 0.05
    assert [restart.step for restart in restarts.listed] == [40]
    assert restarts.see(FirstStep()) is None
