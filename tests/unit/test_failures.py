"""Which failures another start can heal, and what is said of them."""

import errno
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from raysft.errors import NotFinite, OutOfMemory, RunError, UserError, memory_users
from raysft.job import explain
from raysft.runtime.connect import init_ray
from raysft.runtime.failure_policy import HealingPolicy, explain_failure

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE


class Said:
    """In the place of a mailbox."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.put = self

    def remote(self, event: Any) -> None:
        self.events.append(event)


def failed(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError(error_message="", worker_failures=dict(enumerate(errors)))


def lost() -> Exception:
    return WorkerHealthCheckFailedError("", RayActorError())


def policy() -> tuple[HealingPolicy, list[Any]]:
    said = Said()
    return HealingPolicy(FailureConfig(max_failures=3), said), said.events


def test_lost_workers_are_replaced_as_often_as_allowed() -> None:
    heal, said = policy()
    peer = RuntimeError("Connection closed by peer [127.0.0.1]:3")
    for _ in range(3):
        assert heal.make_decision(failed(peer, lost())) == RETRY
    assert heal.make_decision(failed(lost(), peer)) == RAISE
    words = "lost worker 1: its process or its node died: the workers start again from"
    assert [words in event.message for event in said] == [True] * 3


@pytest.mark.parametrize(
    "error",
    [
        UserError("data.path: no such file"),
        RunError("parameters are missing"),
        NotFinite("the training loss is nan", 3),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_what_another_start_would_meet_again_is_not_tried_again(error: Exception) -> None:
    heal, said = policy()
    wrapped = RuntimeError("in a worker")
    wrapped.__cause__ = error
    assert heal.make_decision(failed(wrapped)) == RAISE
    assert not said
    explained = explain_failure(failed(wrapped))
    assert type(explained) is (RunError if isinstance(error, OSError) else type(error))


def test_what_the_controller_meets_is_told_like_that_of_a_worker() -> None:
    heal, said = policy()
    no_room = ControllerError(RunError("no room for 2 workers on any node in 600 s"))
    assert heal.make_decision(no_room) == RAISE
    assert str(explain_failure(no_room)) == "no room for 2 workers on any node in 600 s"
    full = ControllerError(OSError(errno.ENOSPC, "No space left on device", "register.json"))
    assert heal.make_decision(full) == RAISE
    assert "the disk is full while writing register.json" in str(explain_failure(full))
    assert not said
    late = ControllerError(WorkerGroupStartupTimeoutError(2))
    assert heal.make_decision(late) == RETRY
    assert "2 workers could not be placed in a minute: the workers start" in said[0].message


def test_a_cut_connection_is_a_lost_worker_however_often_it_comes() -> None:
    """The other workers meet it before Ray knows that one is gone."""
    heal, said = policy()
    cut = RuntimeError("Read error [127.0.0.1]:3797: Connection reset by peer. GLHF!")
    for _ in range(3):
        assert heal.make_decision(failed(cut, cut)) == RETRY
    assert "lost a worker: its process or its node died" in said[0].message
    assert heal.make_decision(failed(cut, cut)) == RAISE


def test_a_workers_own_error_is_not_hidden_by_what_the_others_meet() -> None:
    heal, said = policy()
    cut = RuntimeError("Read error [127.0.0.1]:3797: Connection reset by peer. GLHF!")
    assert heal.make_decision(failed(cut, ValueError("of its own"))) == RETRY
    assert "a worker failed: of its own: the workers start again" in said[0].message
    assert heal.make_decision(failed(cut, ValueError("of its own"))) == RAISE


def test_a_full_disk_in_the_words_of_a_library() -> None:
    """safetensors writes files by itself."""
    error = RuntimeError("I/O error: No space left on device (os error 28)")
    assert policy()[0].make_decision(failed(error)) == RAISE
    assert "the disk is full" in str(explain_failure(failed(error)))


def test_the_same_error_twice_is_not_tried_a_third_time() -> None:
    heal, said = policy()
    memory = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 75 GiB")
    assert heal.make_decision(failed(memory)) == RETRY
    assert heal.make_decision(failed(memory)) == RAISE
    assert "out of memory: a worker asked for more than there is: the workers" in said[0].message
    assert isinstance(explain_failure(failed(memory)), OutOfMemory)
    heal, _ = policy()
    assert heal.make_decision(failed(ValueError("one"))) == RETRY
    assert heal.make_decision(failed(ValueError("two"))) == RETRY
    assert heal.make_decision(failed(ValueError("two"))) == RAISE


# What Ray 2.60 said of a process that its memory monitor ended; the list is shortened.
KILLED = """1 worker(s) were killed due to the node running low on memory. Memory on the node \
(IP: 192.0.2.2, ID: e220) was 22.61GB used / 23.54GB limit (0.960493)
OOM kill reason: Memory usage 24277698432B exceeded threshold of 24012676915B (95.0% of limit)
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
32536\t9.30\tray::RayTrainWorker
30503\t8.43\tpython notebook.py --all
32147\t0.24\tray::TrainController.run
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/. \
Set max_restarts and max_task_retries to enable retry when the task crashes due to OOM."""
USERS = (
    "On 192.0.2.2, 22.61 of 23.54 GB were in use, most by ray::RayTrainWorker 9.30 GB, python "
    "notebook.py --all 8.43 GB, ray::TrainController.run 0.24 GB"
)


def test_out_of_memory_says_who_used_it() -> None:
    of_a_worker = str(explain_failure(failed(OutOfMemoryError(KILLED))))
    code, status, beside = explain(OutOfMemoryError(KILLED))
    assert (code, status) == (1, "failed")
    assert beside.startswith("out of memory: Ray has ended a process beside the workers")
    for told in (of_a_worker, beside):
        assert USERS in told
        assert "batch.micro_batch_size" in told
        assert "Refer to" not in told
    assert memory_users(MemoryError("no list")) == ""


def test_who_used_the_memory_does_not_make_it_another_failure() -> None:
    heal, _ = policy()
    assert heal.make_decision(failed(OutOfMemoryError(KILLED))) == RETRY
    assert heal.make_decision(failed(OutOfMemoryError(KILLED.replace("8.43", "8.44")))) == RAISE


def test_a_ray_that_starts_too_slowly_is_told_without_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray gives a node 30 s, and a machine with enough else to do takes longer."""

    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr("ray.init", init)
    told = r"within half a minute .* try again when less runs beside"
    with pytest.raises(RunError, match=told):
        init_ray({})
