"""How many workers a run starts and goes on with: as many as there is room for."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.train import ScalingConfig

from raysft.errors import RunError
from raysft.runs import events, snapshot
from raysft.runtime.ray_private import (
    ControllerCallback,
    ElasticScalingPolicy,
    FailureDecision,
    NoopDecision,
    ScalingDecision,
    WorkerGroup,
    WorkerGroupCallback,
    WorkerGroupPollStatus,
    WorkerGroupState,
    available_resources_per_node,
)
from raysft.runtime.resources import places
from raysft.train.mailbox import Request

LOOK_EVERY_S = 0.5  # while no worker runs
GROW_EVERY_S = 5.0  # how often running workers look for room to be more
# A lost worker's resources are free again after a moment, and a new node may take a lost one's
# place: a run waits so long before it goes on with fewer workers.
GRACE_S = 5.0
SAY_EVERY_S = 60.0
PATIENCE_S = 600.0  # for a node that takes the place of a lost one
ANSWERS_WITHIN_S = 2.0


class RoomPolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """From the fewest to the most workers of `scaling.workers`, which may be the same number.

    Ray Train's own policies start workers on nodes that are lost but not noticed yet, or ask a
    coordinator that looks at the cluster every 20 s, and grow by ending workers in mid-step.
    """

    def __init__(
        self, config: ScalingConfig, run_dir: Path, mailbox: Any, *, autoscales: bool
    ) -> None:
        """autoscales: the cluster may get nodes that are asked for; one embedded in a job cannot,
        and saves the process that would ask."""
        super().__init__(config)
        self.autoscales = autoscales
        self.run_dir = run_dir
        self.mailbox = mailbox
        self.waiting_since: float | None = None
        self.said_at = float("-inf")
        self.looked_at = float("-inf")
        self.saved_before: int | None = None  # the newest checkpoint when another was asked for

    def after_controller_start(self, train_run_context: Any) -> None:
        if self.autoscales:
            super().after_controller_start(train_run_context)

    def ask_autoscaler(self) -> None:
        if self.autoscales:
            self._maybe_send_resource_request()

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self.ask_autoscaler()
        now = time.monotonic()
        self.waiting_since = self.waiting_since or now
        fewest, most = self.scaling_config.min_workers, self.scaling_config.max_workers
        workers = self.room(running=0)
        waited_s = now - self.waiting_since
        if workers is None or workers < (most if waited_s < GRACE_S else fewest):
            if waited_s > PATIENCE_S:
                raise RunError(
                    f"no room for {fewest} workers on any node in {PATIENCE_S:.0f} s: go on with "
                    "--resume when there is, or allow fewer by scaling.workers"
                )
            if waited_s > GRACE_S and now - self.said_at > SAY_EVERY_S:
                self.said_at = now
                self.tell(f"waiting for nodes: there is no room for {fewest} workers now")
            time.sleep(LOOK_EVERY_S)
            return NoopDecision()
        self.waiting_since, self.saved_before, self.looked_at = None, None, now
        if workers < most:
            self.tell(f"room for {workers} of {most} workers: going on with {workers}")
        return self._get_resize_decision(workers)

    def make_decision_for_running_worker_group(
        self,
        worker_group_state: WorkerGroupState,
        worker_group_status: WorkerGroupPollStatus,  # noqa: ARG002
    ) -> ScalingDecision:
        self.ask_autoscaler()
        running, now = worker_group_state.num_workers, time.monotonic()
        if running == self.scaling_config.max_workers or now - self.looked_at < GROW_EVERY_S:
            return NoopDecision()
        if self.saved_before is None:
            self.looked_at = now
            if (self.room(running) or 0) > running:
                self.saved_before = self.newest_step()
                self.mailbox.ask.remote(Request.SAVE)
            return NoopDecision()
        if self.newest_step() <= self.saved_before:
            return NoopDecision()
        workers, self.saved_before, self.looked_at = self.room(running) or 0, None, now
        if workers <= running:
            return NoopDecision()
        message = f"room for {workers} workers: they go on from a checkpoint taken for it"
        self.mailbox.put.remote(events.Restart(message))
        return self._get_resize_decision(workers)

    def room(self, running: int) -> int | None:
        """How many workers the nodes could hold with those that run; None: it is not known yet."""
        needs = self.scaling_config._resources_per_worker_not_none
        free = free_places(needs)
        return None if free is None else min(running + free, self.scaling_config.max_workers)

    def newest_step(self) -> int:
        """Of the checkpoints that are registered; 0 without one."""
        return max(snapshot.checkpoints_by_step(self.run_dir), default=0)

    def tell(self, message: str) -> None:
        self.mailbox.put.remote(events.Warning(message))


class FreesFailed(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Frees what failed workers hold before it is decided how many start again.

    Ray Train ends them when that is decided: until then the survivors' places count as taken.
    """

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        self.state = worker_group.get_worker_group_state()

    def before_controller_execute_failure_decision(self, failure_decision: FailureDecision) -> None:
        if failure_decision == FailureDecision.RETRY and hasattr(self, "state"):
            self.state.placement_group_handle.shutdown()


def free_places(needs: Mapping[str, float]) -> int | None:
    """Workers that fit into what is free on the nodes of the cluster.

    None while a node that Ray counts does not answer: Ray needs up to 13 s to notice that it is
    lost, and would place workers on it.
    """
    free = available_resources_per_node()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not all(answers(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in nodes):
        return None
    return sum(places([free.get(node["NodeID"], {}) for node in nodes], needs))


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=ANSWERS_WITHIN_S).close()
    except OSError:
        return False
    return True
