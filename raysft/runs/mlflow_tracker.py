"""MLflow. Address and credentials are its own environment variables: MLFLOW_TRACKING_URI, ..."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysft.runs.tracker import Line, Tracked, Tracker

ID = "raysft.id"  # the tag by which a run is found again
# By default it tries for minutes before it tells; here what failed is tried again anyway.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
STATUSES = {"done": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED"}
# Of one call of its API: https://mlflow.org/docs/latest/rest-api.html
MOST_PARAMS, MOST_METRICS, LONGEST_PARAM, LONGEST_TAG = 100, 1000, 6000, 8000


def open_mlflow(run: Tracked, parent: Tracker | None) -> Tracker:
    """Goes on with the run that has this id where there is one. Raises what the library raises."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = experiment_id(client, run.project)
    found = client.search_runs([experiment], f"tags.`{ID}` = '{run.id}'", max_results=1)
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        there = found[0]
    else:
        there = client.create_run(experiment, tags=tags(run, parent), run_name=run.name)
    tracker = MlflowTracker(client, there.info.run_id)
    tracker.log_config(run, there.data.params)
    return tracker


def experiment_id(client: Any, name: str) -> str:
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except Exception:
        if found := client.get_experiment_by_name(name):  # another run was first
            return str(found.experiment_id)
        raise


def tags(run: Tracked, parent: Tracker | None) -> dict[str, str]:
    tags = {ID: run.id, "raysft.verb": run.kind}
    tags |= {f"raysft.{key}": str(value)[:LONGEST_TAG] for key, value in run.stamp.items()}
    if run.group is not None:
        tags["raysft.group"] = run.group
    if isinstance(parent, MlflowTracker):
        tags["mlflow.parentRunId"] = parent.run_id
    return tags


class MlflowTracker:
    def __init__(self, client: Any, run_id: str) -> None:
        self.client = client
        self.run_id = run_id

    def log_config(self, run: Tracked, there: Mapping[str, str]) -> None:
        """As params those that are not there: MLflow lets none be changed. As a file all."""
        from mlflow.entities import Param

        params = [
            Param(key, str(value)[:LONGEST_PARAM])
            for key, value in run.config.items()
            if value is not None and key not in there
        ]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(self.run_id, params=params[start : start + MOST_PARAMS])
        text = json.dumps({"config": run.config, "stamp": run.stamp}, indent=2)
        self.client.log_text(self.run_id, text, "config.json")

    def log(self, lines: Sequence[Line]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [
            Metric(key, value, now_ms, step) for step, line in lines for key, value in line.items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + MOST_METRICS])

    def end(self, status: str, numbers: Mapping[str, float], files: Sequence[Path]) -> None:
        self.log([Line(0, numbers)])
        for file in files:
            self.client.log_artifact(self.run_id, str(file))
        self.client.set_tag(self.run_id, "raysft.status", status)
        self.client.set_terminated(self.run_id, STATUSES.get(status, "FAILED"))
