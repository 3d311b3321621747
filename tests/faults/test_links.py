"""A link between two hosts is cut, for a while or for good, or one of them is lost.

The run is submitted from a third host, whose own link stays.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysft.runs import snapshot
from raysft.train.checkpoint.integrity import damage
from tests.faults.conftest import Run
from tests.faults.test_faults import Enter, healed
from tests.ray.hosts import Hosts, two_hosts

# Gloo sums in the same order on two hosts as on one.
AS_ON_ONE_HOST = 1e-6


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts() as up:
        yield up


def test_a_link_is_cut_for_20_s(
    hosts: Hosts, undisturbed: Run, ledger: Enter, tmp_path: Path
) -> None:
    fault = ledger("link cut", "after step 25, for 20 s")
    run = Run(tmp_path, on_hosts=True)
    run.reach(25)
    hosts.do("cut")
    time.sleep(20)
    hosts.do("heal")
    said = healed(run, fault, undisturbed, tolerance=AS_ON_ONE_HOST)
    assert "lost worker" in said


def test_a_link_is_cut_for_good(
    hosts: Hosts, undisturbed: Run, ledger: Enter, tmp_path: Path
) -> None:
    """With one worker less, where that is allowed."""
    fault = ledger("link cut", "after step 25, for good; scaling.workers = [1, 2]")
    run = Run(tmp_path, "scaling.workers=[1, 2]", on_hosts=True)
    run.reach(25)
    hosts.do("cut")
    said = healed(run, fault, undisturbed, tolerance=1e-3)
    assert "room for 1 of 2 workers: going on with 1" in said
    assert [damage(path) for path in snapshot.checkpoints(run.folder)] == [None, None]


def test_a_host_is_lost_and_comes_back(
    hosts: Hosts, undisturbed: Run, ledger: Enter, tmp_path: Path
) -> None:
    fault = ledger("node lost", "after step 25, the host starts again 5 s later")
    run = Run(tmp_path, on_hosts=True)
    run.reach(25)
    hosts.do("lose")
    time.sleep(5)
    hosts.do("return")
    healed(run, fault, undisturbed, tolerance=AS_ON_ONE_HOST)
