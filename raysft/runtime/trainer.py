"""Ray Train's trainer as our runs use it: with our policies, without what they have no use for."""

from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raysft.config.schema import Config
from raysft.runs import rundir
from raysft.runtime.connect import EMBEDDED, missing_environment
from raysft.runtime.failure_policy import HealingPolicy
from raysft.runtime.network import NodeNetwork
from raysft.runtime.ray_private import ControllerCallback, DataParallelTrainer
from raysft.runtime.scaling_policy import FreesFailed, RoomPolicy
from raysft.runtime.train_loop import train_loop_per_worker
from raysft.train.mailbox import ControllerStarted

# Callbacks of Ray Train. The first leads workers away from the folder that relative paths start at.
# The others start a process of their own, which takes a second or more of CPU: the second makes
# each worker import ray.data too; the third tidies up a cluster that outlives the job, and sees
# nothing without the dashboard.
NOT_NEEDED = {"WorkingDirectorySetupCallback", "DatasetsCallback"} | (
    {"PlacementGroupCleanerCallback"} if EMBEDDED else set()
)


class Placement(NamedTuple):
    """What holds the resources of a run: enough to free them from another process."""

    controller: Any  # Ray Train's, which would start lost workers again
    placement_group: str  # hexadecimal

    def free(self) -> None:
        """End the controller and its workers; nothing where they have ended."""
        ray.kill(self.controller)
        group = PlacementGroup(ray.PlacementGroupID.from_hex(self.placement_group))
        remove_placement_group(group)


class TellsController(ControllerCallback):  # type: ignore[misc]
    """Sends the controller's handle to the driver, which Ray Train keeps to itself."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ARG002
        handle = ray.get_runtime_context().current_actor
        self.mailbox.put.remote(ControllerStarted(ray.cloudpickle.dumps(handle)))


class LeanTrainer(DataParallelTrainer):  # type: ignore[misc]
    """The two methods are private ones of Ray 2.60's, see ray_private.METHODS."""

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        mailbox = self.train_loop_config["mailbox"]
        options["failure_policy"] = HealingPolicy(self.run_config.failure_config, mailbox)
        run_dir = Path(self.run_config.storage_path)
        options["scaling_policy"] = RoomPolicy(
            self.scaling_config, run_dir, mailbox, autoscales=not EMBEDDED
        )
        return super()._initialize_and_run_controller(**options)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [
            TellsController(self.train_loop_config["mailbox"]),
            FreesFailed(),
            *(one for one in callbacks if type(one).__name__ not in NOT_NEEDED),
        ]


def make_trainer(config: Config, options: dict[str, Any], run_dir: Path) -> LeanTrainer:
    """options: what `train_loop_per_worker` gets."""
    scaling = config.scaling
    resources = {"CPU": scaling.cpus_per_worker}
    if config.on_gpu:
        resources["GPU"] = scaling.gpus_per_worker
    return LeanTrainer(
        train_loop_per_worker,
        train_loop_config=options,
        backend_config=NodeNetwork(backend="nccl" if config.on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=scaling.workers, use_gpu=config.on_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=rundir.CHECKPOINTS,
            storage_path=str(run_dir.resolve()),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            worker_runtime_env={"env_vars": missing_environment(config)},
        ),
    )
