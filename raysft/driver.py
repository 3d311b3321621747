"""`fit`: one training run on the Ray cluster this process is connected to."""

import errno
import math
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.queue import Empty, Queue

from raysft.cluster import EMBEDDED, missing_environment
from raysft.config.resources import require_resources
from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset, epoch_length
from raysft.errors import NotFinite, OutOfMemory, RunError, UserError
from raysft.events import Emit, Event
from raysft.train.entry import train_entry
from raysft.train.worker import WorkerJob


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
    """Train on `config.scaling.workers` workers; `emit` gets every event, in this thread.

    exports: the model is written to `run_dir` at the end. start_from: a checkpoint to go on from,
    where `run_dir` has none. placed: is told whenever a group of workers has started.

    Raises UserError when the cluster is too small, NotFinite when the loss is, and RunError when
    the run fails in another way.
    """
    require_resources(config, ray.cluster_resources())
    # Ray Train's controller looks at its workers every 2 s by default, and the end of a run and
    # every checkpoint wait for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if EMBEDDED:  # nobody takes this machine away
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    events = Queue(actor_options={"num_cpus": 0})
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
        "events": events,
    }
    emit({"event": "plan", "total_steps": job.total_steps})
    starts, controller = 0, None

    def forward(event: Event) -> None:
        nonlocal starts, controller
        if event["event"] == "controller":
            controller = event["handle"]
            return
        if event["event"] == "placed":
            if placed is not None:
                placed(Placement(controller, event["placement_group"]))
            return
        if event["event"] == "workers":
            starts += 1
            if starts > 1:
                emit({"event": "warning", "message": f"workers were restarted, {starts - 1} times"})
        emit(event)

    future = in_thread(make_trainer(config, options, run_dir).fit)
    while not future.done() or not events.empty():
        with suppress(Empty):
            forward(events.get(timeout=0.5))
    try:
        result = future.result()
    except TrainingFailedError as error:
        raise explain_failure(error) from error
    finally:
        events.shutdown(force=True)  # its process, of which a benchmark would leave one a case
    if "not_finite" in result.return_value:
        raise NotFinite(*result.return_value["not_finite"])
    return RunResult(totals=result.return_value, num_restarts=max(0, starts - 1))


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
        torch_config=TorchConfig(backend="nccl" if config.on_gpu else "gloo"),
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


# Callbacks of Ray Train that start a process of their own, which takes a second or more of CPU. The
# first makes each worker import ray.data too; the second tidies up a cluster that outlives the job,
# and sees nothing without the dashboard.
NOT_NEEDED = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if EMBEDDED else set())


class TellsController(ControllerCallback):  # type: ignore[misc]
    """Sends the controller's handle to the driver, which Ray Train keeps to itself."""

    def __init__(self, events: Queue) -> None:
        self.events = events

    def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ARG002
        handle = ray.get_runtime_context().current_actor
        self.events.actor.put.remote({"event": "controller", "handle": handle})


class LeanTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer without what our runs have no use for. Should a release of Ray no longer ask
    this method, they are back and a run starts later, as it would with TorchTrainer."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [
            TellsController(self.train_loop_config["events"]),
            *(one for one in callbacks if type(one).__name__ not in NOT_NEEDED),
        ]


def explain_failure(error: TrainingFailedError) -> Exception:
    """The cause a person can act on; the traceback is in the job's log."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    for cause in causes:
        root: BaseException | None = cause
        while root is not None:
            if isinstance(root, UserError | RunError):
                return root
            if isinstance(root, OSError) and root.errno == errno.ENOSPC:
                return disk_full(root)
            root = root.__cause__ or getattr(root, "cause", None)
    if any(is_out_of_memory(cause) for cause in causes):
        return OutOfMemory(
            "out of memory: a worker asked for more than there is. Any of these needs less: "
            "a smaller batch.micro_batch_size or batch.seq_len, "
            "model.activation_checkpointing = true, engine.zero_stage = 3, engine.precision = "
            '"bf16", more scaling.workers on other machines'
        )
    first = str(causes[0]).strip().splitlines()
    return RunError(f"a worker failed: {first[-1] if first else type(causes[0]).__name__}")


# Ray's memory monitor, CUDA, and torch's allocator on a CPU.
ALLOCATION_FAILED = (
    "OutOfMemory",
    "low on memory",
    "out of memory",
    "can't allocate memory",
    "not enough memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """By message: Ray wraps its own class in those of the actor that died of it."""
    text = f"{type(error).__name__} {error}"
    return any(words in text for words in ALLOCATION_FAILED)


def disk_full(error: OSError) -> RunError:
    where = f" while writing {error.filename}" if error.filename else ""
    return RunError(
        f"the disk is full{where}. Free some space, or set run.storage to another disk, "
        "checkpoint.keep = 1, or checkpoint.every_steps = 0."
    )
