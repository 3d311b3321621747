"""The only module that names private interfaces of Ray: each with what it is for.

Ray Train has no public way yet to choose how it heals and grows. These interfaces differ from one
minor version of Ray to the next, so pyproject.toml holds Ray to the one that they are known for.
"""

from importlib import import_module

import ray

from raysft.errors import UserError

KNOWN = "2.60"  # the minor version all of this was tried with


KNOWN_RAY = (
    "raysft places, heals and grows its workers through parts of Ray that change from version to "
    f"version, and is known to work with Ray {KNOWN}: pip install "
    f"'ray[default,train,tune]=={KNOWN}.*'"
)


def advice(found: str) -> str:
    return f"Ray {ray.__version__} {found}. {KNOWN_RAY}"


try:
    # What is free on each node: how many workers find room.
    from ray._private.state import available_resources_per_node

    # Which failure it was, and what becomes of it.
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    # Told of the controller and of groups of workers as they start.
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.failure_handling import (
        DefaultFailurePolicy,
        FailureDecision,
    )

    # How many workers start, and whether more are to.
    from ray.train.v2._internal.execution.scaling_policy import (
        ElasticScalingPolicy,
        NoopDecision,
        ScalingDecision,
    )
    from ray.train.v2._internal.execution.worker_group import (
        WorkerGroup,
        WorkerGroupPollStatus,
        WorkerGroupState,
    )

    # The trainer without torch, which the controller is not to load.
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
except ImportError as error:
    raise UserError(advice(f"lacks {error.name}: {error.msg}")) from None

__all__ = [
    "ControllerCallback", "DataParallelTrainer", "DefaultFailurePolicy", "ElasticScalingPolicy",
    "FailureDecision", "NoopDecision", "ScalingDecision", "WorkerGroup", "WorkerGroupCallback",
    "WorkerGroupPollStatus", "WorkerGroupStartupTimeoutError", "WorkerGroupState",
    "available_resources_per_node",
]  # fmt: skip

# Methods that are ours in a subclass, or that ours call: class, method, what for.
METHODS = (
    (
        f"{__name__}:DataParallelTrainer",
        "_initialize_and_run_controller",
        "to hand it our policies",
    ),
    (f"{__name__}:DataParallelTrainer", "_create_default_callbacks", "to leave out the slow ones"),
    ("ray.train:ScalingConfig", "_resources_per_worker_not_none", "what a worker needs"),
    (f"{__name__}:ElasticScalingPolicy", "_maybe_send_resource_request", "the autoscaler's word"),
    (f"{__name__}:ElasticScalingPolicy", "_get_resize_decision", "a number as a decision"),
    ("ray.job_submission:JobSubmissionClient", "_do_request", "to wait no longer than so long"),
    ("ray.tune.schedulers:PopulationBasedTraining", "_get_new_config", "to number its trials"),
)


def missing_methods() -> list[str]:
    """Those of METHODS that this Ray lacks."""
    missing = []
    for place, method, purpose in METHODS:
        module, _, name = place.partition(":")
        if not hasattr(getattr(import_module(module), name, None), method):
            missing.append(f"{name}.{method} ({purpose})")
    return missing


def version_warning() -> str | None:
    """What to say where Ray is another than the one that is known to work."""
    if ray.__version__.startswith(KNOWN + "."):
        return None
    return advice("is not the one this raysft was tested with")


def session_folder() -> str:
    """Where Ray keeps logs, what is shipped with jobs, and objects that memory has no room for."""
    return str(ray._private.worker._global_node.get_session_dir_path())
