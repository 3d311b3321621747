"""`fit`: one training run on the Ray cluster this process is connected to."""

import math
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset, epoch_length
from raysft.data.loader import RankData
from raysft.errors import NotFinite
from raysft.runs import rundir
from raysft.runs.events import Emit, Event
from raysft.runtime.connect import EMBEDDED, missing_environment
from raysft.runtime.failure_policy import HealingPolicy, explain_failure
from raysft.runtime.network import NodeNetwork
from raysft.runtime.resources import require_resources
from raysft.runtime.restarts import Restarts
from raysft.runtime.scaling_policy import FreesFailed, RoomPolicy
from raysft.runtime.train_loop import train_entry
from raysft.train.mailbox import Wish, first_interrupt, open_mailbox
from raysft.train.worker import WorkerJob

NAMED = 16  # records that a message names
POLL_S = 0.5  # how long the driver waits for events before it looks whether the run has ended
AT_ONCE = "a second Ctrl-C stops at once"


class Placement(NamedTuple):
    """What holds the resources of a run: enough to free them from another process."""

    controller: Any  # Ray Train's, which would start lost workers again
    placement_group: str  # hexadecimal

    def free(self) -> None:
        """End the controller and its workers; nothing where they have ended."""
        ray.kill(self.controller)
        group = PlacementGroup(ray.PlacementGroupID.from_hex(self.placement_group))
        remove_placement_group(group)


@dataclass(frozen=True)
class RunResult:
    totals: dict[str, Any]  # what train_worker returns on rank 0
    num_restarts: int
    restarts: list[dict[str, Any]]  # what each of them cost, see Restarts


def total_steps(config: Config, num_records: int) -> int:
    """Optimizer steps of the run; an epoch sees `num_records`."""
    if config.run.max_steps is not None:
        return config.run.max_steps
    return math.ceil(config.run.epochs * num_records / config.batch.global_batch_size)


def fit(
    config: Config,
    train: TokenDataset,
    heldout: TokenDataset,
    hf_config: Any,
    tokenizer: Any,
    run_dir: Path,
    emit: Emit,
    *,
    exports: bool = True,
    start_from: Path | None = None,
    placed: Callable[[Placement], None] | None = None,
) -> RunResult:
    """Train on the workers of `config.scaling`; `emit` gets every event, in this thread.

    exports: the model is written to `run_dir` at the end. start_from: a checkpoint to go on from,
    where `run_dir` has none. placed: is told whenever a group of workers has started.

    Raises UserError when the cluster is too small, NotFinite when the loss is, and RunError when
    the run fails in another way. The first interrupt lets the workers finish their step and take a
    checkpoint, and raises KeyboardInterrupt then; the second does at once, as does one before
    training has begun.
    """
    require_resources(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    # Ray Train's controller looks at its workers every 2 s by default, and the end of a run and
    # every checkpoint wait for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if EMBEDDED:  # nobody takes this machine away
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    run_dir.mkdir(parents=True, exist_ok=True)  # by which workers know that they share it
    mailbox = open_mailbox()
    job = WorkerJob(
        config=config,
        hf_config=hf_config,
        tokenizer=tokenizer,
        total_steps=total_steps(config, epoch_length(train)),
        run_dir=run_dir.resolve(),
        exports=exports,
        start_from=start_from,
    )
    options = {
        "job": ray.cloudpickle.dumps(job),
        "train": ray.put(train),
        "heldout": ray.put(heldout),
        "mailbox": mailbox,
    }
    emit({"event": "plan", "total_steps": job.total_steps})
    starts, controller, started, stopping = 0, None, False, False
    restarts = Restarts()

    def forward(event: Event) -> None:
        nonlocal starts, controller, started
        if event["event"] == "controller":
            controller = event["handle"]
            return
        if event["event"] == "placed" and placed is not None:
            placed(Placement(controller, event["placement_group"]))
        starts += event["event"] == "workers"
        started = started or event["event"] == "started"
        emit(event)
        if recovered := restarts.see(event):
            emit(recovered)

    future = in_thread(make_trainer(config, options, run_dir).fit)
    with first_interrupt() as interrupted:
        ended = False
        while not ended:
            ended = future.done()  # before the last look, or an event could come in between
            for event in ray.get(mailbox.fetch.remote(0 if ended else POLL_S)):
                forward(event)
            if interrupted.is_set() and not started:
                raise KeyboardInterrupt
            if interrupted.is_set() and not stopping:
                stopping = True
                mailbox.ask.remote(Wish.STOP)
                saving = " and its checkpoint" if config.checkpoint.every_steps else ""
                emit({"event": "status", "message": f"stopping after this step{saving}; {AT_ONCE}"})
    try:
        result = future.result()
    except TrainingFailedError as error:
        raise explain_failure(error) from error
    finally:
        ray.kill(mailbox)  # its process, of which a benchmark would leave one a case
    if result.return_value.get("interrupted"):
        raise KeyboardInterrupt
    if "not_finite" in result.return_value:
        message, step = result.return_value["not_finite"]
        raise NotFinite(f"{message}. {circumstances(config, train, run_dir, step)}", step)
    return RunResult(result.return_value, max(0, starts - 1), restarts.listed)


def circumstances(config: Config, train: TokenDataset, run_dir: Path, step: int) -> str:
    """The records of a step, by their numbers in the training set, and the last good state."""
    if step == 0:
        return "No step was taken yet: the model itself gives it"
    records = RankData(config, train, train, rank=0, world_size=1).records(step - 1)
    named = ", ".join(map(str, records[:NAMED])) + (", ..." if len(records) > NAMED else "")
    saved = [at for at in rundir.checkpoints_by_step(run_dir) if at < step]
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


def make_trainer(config: Config, options: dict[str, Any], run_dir: Path) -> TorchTrainer:
    scaling = config.scaling
    resources = {"CPU": scaling.cpus_per_worker}
    if config.on_gpu:
        resources["GPU"] = scaling.gpus_per_worker
    return LeanTrainer(
        train_entry,
        train_loop_config=options,
        torch_config=NodeNetwork(backend="nccl" if config.on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=scaling.workers, use_gpu=config.on_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=str(run_dir.resolve()),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            worker_runtime_env={"env_vars": missing_environment(config)},
        ),
    )


# Callbacks of Ray Train. The first leads workers away from the folder that relative paths start at.
# The others start a process of their own, which takes a second or more of CPU: the second makes
# each worker import ray.data too; the third tidies up a cluster that outlives the job, and sees
# nothing without the dashboard.
NOT_NEEDED = {"WorkingDirectorySetupCallback", "DatasetsCallback"} | (
    {"PlacementGroupCleanerCallback"} if EMBEDDED else set()
)


class TellsController(ControllerCallback):  # type: ignore[misc]
    """Sends the controller's handle to the driver, which Ray Train keeps to itself."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ARG002
        handle = ray.get_runtime_context().current_actor
        self.mailbox.put.remote({"event": "controller", "handle": handle})


class LeanTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer without what our runs have no use for, and with our policies.

    Should a release of Ray no longer ask these methods, a run starts later, and heals and grows as
    it would with TorchTrainer.
    """

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        mailbox = self.train_loop_config["mailbox"]
        options["failure_policy"] = HealingPolicy(self.run_config.failure_config, mailbox)
        run_dir = Path(self.run_config.storage_path)
        options["scaling_policy"] = RoomPolicy(self.scaling_config, run_dir, mailbox)
        return super()._initialize_and_run_controller(**options)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [
            TellsController(self.train_loop_config["mailbox"]),
            FreesFailed(),
            *(one for one in callbacks if type(one).__name__ not in NOT_NEEDED),
        ]
