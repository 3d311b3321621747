"""What ended a run: whether starting its workers again can heal it, and how to say it."""

import errno
import os
from collections.abc import Iterator
from typing import Any

from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import FailureConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from raysft.errors import (
    OutOfMemory,
    RunError,
    UserError,
    is_cut_off,
    is_out_of_memory,
    memory_users,
)
from raysft.runs import events
from raysft.runtime.ray_private import (
    DefaultFailurePolicy,
    FailureDecision,
    WorkerGroupStartupTimeoutError,
)

NO_SPACE = os.strerror(errno.ENOSPC)
ADVICE = (
    "Any of these needs less: a smaller batch.micro_batch_size or batch.seq_len, "
    "model.activation_checkpointing = true, engine.zero_stage = 3, engine.precision = "
    '"bf16", more scaling.workers on other machines; of a search or a study, a smaller '
    "tune.max_concurrent"
)


class HealingPolicy(DefaultFailurePolicy):  # type: ignore[misc]
    """Ray Train's, but for failures that another start would meet again.

    Those are errors in the user's input or of the run itself, a full disk, and whatever comes a
    second time in the same words though no worker was lost. It says what it does, and why.
    """

    def __init__(self, config: FailureConfig, mailbox: Any) -> None:
        super().__init__(config)
        self.mailbox = mailbox
        self.last = ""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        reason = reason_of(training_failed_error)
        again = reason == self.last and not lost_worker(training_failed_error)
        self.last = reason
        if cause_of(training_failed_error) is not None or again:
            return FailureDecision.RAISE
        decision = super().make_decision(training_failed_error)
        if decision == FailureDecision.RETRY:
            message = f"{reason}: the workers start again from the newest checkpoint"
            self.mailbox.put.remote(events.Restart(message))
        return decision


def explain_failure(error: TrainingFailedError) -> Exception:
    """The cause a person can act on; the traceback is in the job's log."""
    cause = cause_of(error)
    if cause is not None:
        return cause
    reason = reason_of(error)
    if reason == OUT_OF_MEMORY:
        users = next(filter(None, map(memory_users, worker_errors(error))), "")
        return OutOfMemory(". ".join(filter(None, (OUT_OF_MEMORY, users, ADVICE))))
    return RunError(reason)


OUT_OF_MEMORY = "out of memory: a worker asked for more than there is"


def cause_of(error: TrainingFailedError) -> Exception | None:
    """What no other start would heal, if it is that."""
    for root in roots(error):
        if isinstance(root, UserError | RunError):
            return root
        if is_disk_full(root):
            return disk_full(root)
    return None


def reason_of(error: TrainingFailedError) -> str:
    """In a few words; the worker that was lost, rather than those that missed it."""
    causes = worker_errors(error)
    if any(is_out_of_memory(cause) for cause in causes):
        return OUT_OF_MEMORY
    if lost_worker(error):
        ranks = getattr(error, "worker_failures", {})
        lost = [str(rank) for rank, cause in ranks.items() if is_lost(cause)]
        which = f"worker {' and '.join(lost)}" if lost else "a worker"
        return f"lost {which}: its process or its node died"
    if isinstance(causes[0], WorkerGroupStartupTimeoutError):
        return f"{causes[0].num_workers} workers could not be placed in a minute"
    first = next(cause for cause in causes if not is_cut_off(cause))
    lines = str(first).strip().splitlines()
    return f"a worker failed: {lines[-1] if lines else type(first).__name__}"


def worker_errors(error: TrainingFailedError) -> list[BaseException]:
    """Or that of Ray Train's controller, where it was no worker's."""
    of_workers = list(getattr(error, "worker_failures", {}).values())
    return of_workers or [getattr(error, "controller_failure", error)]


def roots(error: TrainingFailedError) -> Iterator[BaseException]:
    """Every worker's error, and what it was raised from."""
    for cause in worker_errors(error):
        root: Any = cause
        while root is not None:
            yield root
            root = root.__cause__ or getattr(root, "cause", None)


def lost_worker(error: TrainingFailedError) -> bool:
    """Or only the others' word for it, and no error of any worker's own."""
    causes = worker_errors(error)
    return any(map(is_lost, causes)) or all(map(is_cut_off, causes))


def is_lost(error: BaseException) -> bool:
    """Whether a worker's process ended without an error of its own."""
    died = getattr(error, "health_check_failure", error)
    return isinstance(died, RayActorError) and not isinstance(died, OutOfMemoryError)


def is_disk_full(error: BaseException) -> bool:
    """Of Python, or in the words of a library that writes files by itself, as safetensors does."""
    return getattr(error, "errno", None) == errno.ENOSPC or NO_SPACE in str(error)


def disk_full(error: BaseException) -> RunError:
    filename = getattr(error, "filename", None)
    where = f" while writing {filename}" if filename else ""
    return RunError(
        f"the disk is full{where}. Free some space, or set run.storage to another disk, "
        "checkpoint.keep = 1, or checkpoint.every_steps = 0."
    )
