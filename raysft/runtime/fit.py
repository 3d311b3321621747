"""`fit`: one training run on the Ray cluster this process is connected to."""

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import ray
from ray.train.v2.api.exceptions import TrainingFailedError

from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset, epoch_length
from raysft.data.loader import RankData
from raysft.errors import NotFinite
from raysft.model.answers import ANSWERING
from raysft.runs import events, snapshot
from raysft.runs.events import Emit, Event
from raysft.runtime.connect import EMBEDDED
from raysft.runtime.failure_policy import explain_failure
from raysft.runtime.interrupt import first_interrupt
from raysft.runtime.resources import require_resources
from raysft.runtime.restarts import Restarts
from raysft.runtime.trainer import Placement, make_trainer
from raysft.train.mailbox import ControllerStarted, Request, open_mailbox
from raysft.train.objectives.objective import Objective
from raysft.train.objectives.sft import SFT
from raysft.train.rank import WorkerJob
from raysft.train.worker import Program, train_worker

NAMED = 16  # records that a message names
POLL_S = 0.5  # how long the driver waits for events before it looks whether the run has ended
AT_ONCE = "a second Ctrl-C stops at once"


@dataclass(frozen=True)
class RunResult:
    totals: dict[str, Any]  # what train_worker returns on rank 0
    num_restarts: int
    restarts: list[dict[str, Any]]  # what each of them cost, see Restarts


def total_steps(config: Config, num_records: int, objective: Objective = SFT) -> int:
    """Optimizer steps of the run; an epoch sees `num_records`."""
    if config.run.max_steps is not None:
        return config.run.max_steps
    size = config.prompts if objective.draws else config.batch.global_batch_size
    return math.ceil(config.run.epochs * num_records / size) * objective.updates


def fit(
    config: Config,
    train: TokenDataset,
    heldout: TokenDataset,
    hf_config: Any,
    tokenizer: Any,
    run_dir: Path,
    emit: Emit,
    *,
    objective: Objective = SFT,
    exports: bool = True,
    answers: bool = False,
    start_from: Path | None = None,
    identities: Mapping[str, str] | None = None,
    evaluates_after: tuple[int, ...] = (),
    placed: Callable[[Placement], None] | None = None,
    program: Program = train_worker,
) -> RunResult:
    """Train on the workers of `config.scaling`; `emit` gets every event, in this thread.

    exports: the model is written to `run_dir` at the end. answers: and answers held-out records.
    start_from: a checkpoint to go on from, where `run_dir` has none. identities: of what is trained
    on, which checkpoints keep. evaluates_after: steps, beside those of eval.every_steps. placed: is
    told whenever a group of workers has started. program: what they run in the place of a single
    training run.

    Raises UserError when the cluster is too small, NotFinite when the loss is, and RunError when
    the run fails in another way. The first interrupt lets the workers finish their step and take a
    checkpoint, and raises KeyboardInterrupt then; the second does at once, as does one before
    training has begun or after it.
    """
    require_resources(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    set_switches()
    run_dir.mkdir(parents=True, exist_ok=True)  # by which workers know that they share it
    mailbox = open_mailbox()
    job = WorkerJob(
        config=config,
        objective=objective,
        hf_config=hf_config,
        tokenizer=tokenizer,
        total_steps=total_steps(config, epoch_length(train), objective),
        run_dir=run_dir.resolve(),
        exports=exports,
        answers=answers,
        start_from=start_from,
        identities=identities,
        evaluates_after=evaluates_after,
    )
    options = {
        "job": ray.cloudpickle.dumps((job, program)),
        "train": ray.put(train),
        "heldout": ray.put(heldout),
        "mailbox": mailbox,
        "folder": os.getcwd(),
    }
    emit(events.Plan(job.total_steps))
    told = Forwarding(emit, placed)
    future = in_thread(make_trainer(config, options, run_dir).fit)
    forward(future, mailbox, told, saves=config.checkpoint.every_steps > 0)
    try:
        result = future.result().return_value
    except TrainingFailedError as error:
        raise explain_failure(error) from error
    finally:
        ray.kill(mailbox)  # its process, of which a benchmark would leave one a case
    if result.get("interrupted"):
        raise KeyboardInterrupt
    if "not_finite" in result:
        message, step = result["not_finite"]
        raise NotFinite(f"{message}. {circumstances(job, train, step)}", step)
    restarts = [asdict(restart) for restart in told.restarts.listed]
    return RunResult(result, max(0, told.starts - 1), restarts)


def set_switches() -> None:
    """Of Ray Train, by the environment; what the user has set stays."""
    # The controller looks at its workers every 2 s by default, and the end of a run and every
    # checkpoint wait for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if EMBEDDED:  # nobody takes this machine away
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


class Forwarding:
    """Hands on what comes from the workers, and keeps what it tells of their starts."""

    def __init__(self, emit: Emit, placed: Callable[[Placement], None] | None) -> None:
        self.emit = emit
        self.placed = placed
        self.restarts = Restarts()
        self.controller: Any = None
        self.starts = 0  # of groups of workers
        self.training = False  # a step is under way, and may be waited for

    def __call__(self, event: Event | ControllerStarted) -> None:
        if isinstance(event, ControllerStarted):
            self.controller = ray.cloudpickle.loads(event.handle)
            return
        if isinstance(event, events.Placed) and self.placed is not None:
            self.placed(Placement(self.controller, event.placement_group))
        self.starts += isinstance(event, events.Workers)
        if isinstance(event, events.Started):
            self.training = True
        elif isinstance(event, events.Status) and event.message == ANSWERING:
            self.training = False
        self.emit(event)
        if recovered := self.restarts.see(event):
            self.emit(recovered)


def forward(future: Future[Any], mailbox: Any, told: Forwarding, *, saves: bool) -> None:
    """Until the run has ended. Raises KeyboardInterrupt, see `fit`."""
    ended = stopping = False
    with first_interrupt() as interrupted:
        while not ended:
            ended = future.done()  # before the last look, or an event could come in between
            for event in ray.get(mailbox.fetch.remote(0 if ended else POLL_S)):
                told(event)
            if interrupted.is_set() and not told.training:
                raise KeyboardInterrupt
            if interrupted.is_set() and not stopping:
                stopping = True
                mailbox.ask.remote(Request.STOP)
                saving = " and its checkpoint" if saves else ""
                told.emit(events.Status(f"stopping after this step{saving}; {AT_ONCE}"))


def circumstances(job: WorkerJob, train: TokenDataset, step: int) -> str:
    """The records of a step, by their numbers in the training set, and the last good state."""
    if step == 0:
        return "No step was taken yet: the model itself gives it"
    config, objective = job.config, job.objective
    size = config.prompts if objective.draws else None
    read = RankData(config, train, train, rank=0, world_size=1)
    records = read.records((step - 1) // objective.updates, size)
    named = ", ".join(map(str, records[:NAMED])) + (", ..." if len(records) > NAMED else "")
    saved = [at for at in snapshot.checkpoints_by_step(job.run_dir) if at < step]
    state = (
        f"the last checkpoint before it is of step {saved[-1]}" if saved else "no checkpoint yet"
    )
    return f"Training records of that step: {named}; {state}"


def in_thread(call: Callable[[], Any]) -> Future[Any]:
    """Start `call` beside this thread, which stays free to forward events and be interrupted.

    A daemon thread: after an interrupt nothing waits for it.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future
