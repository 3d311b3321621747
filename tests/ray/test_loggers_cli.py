"""Runs and searches that are logged to Weights & Biases and to MLflow, as a person starts them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Outcome, run_raysft
from tests.unit.test_secrets import SECRETS, found_in
from tests.unit.test_services import history, mlflow_runs
from tests.wandb_files import offline_runs

mlflow = pytest.importorskip("mlflow")

SHORT = (
    "data.max_records=100", "run.samples=0", "scaling.workers=1", "log.every_steps=1",
    "checkpoint.every_steps=2", "eval.every_steps=2", "log.tensorboard=false",
)  # fmt: skip
OFFLINE = {"WANDB_MODE": "offline"}
NOBODY = "http://127.0.0.1:9"  # the port of a service that no machine runs any more


def start(folder: Path, *words: str, **environment: str) -> Outcome:
    typed = [word for setting in SHORT for word in ("--set", setting)]
    outcome = run_raysft(*words, *typed, "--json", cwd=folder, **environment)
    assert outcome.code == 0, outcome.stderr
    return outcome


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, as a service is to have them."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    left_out = {"time_left_s"}
    return [{k: v for k, v in x.items() if v is not None and k not in left_out} for x in lines]


def test_wandb_offline_beside_a_server_that_is_not_there(
    tmp_path: Path, running_ray: dict[str, str]
) -> None:
    """The run ends well, with a warning of the one, and goes on in the same run of the other."""
    words = ("train", "gpt2-tiny-cpu", "--name", "x", "--set", "log.wandb=tiny")
    environment = running_ray | OFFLINE | SECRETS | {"MLFLOW_TRACKING_URI": NOBODY}
    del environment["RAY_AUTH_TOKEN"]
    both = ("--set", "log.mlflow=gone", "--set", "run.max_steps=3")
    first = start(tmp_path, *words, *both, **environment)
    where = "Weights & Biases (project tiny), MLflow (experiment gone)"
    assert where in " ".join(first.stderr.split())
    assert first.stderr.count("log.mlflow: MLflow ") == 1
    assert "log.wandb:" not in first.stderr
    run_dir = tmp_path / "runs/x"
    assert "Traceback" in (run_dir / "job.log").read_text()
    again = start(tmp_path, *words, "--set", "run.max_steps=5", "--resume", **environment)
    assert "log.mlflow: MLflow " not in again.stderr
    one, two = offline_runs(run_dir)
    assert (one.id, one.project, one.name, one.exit_code) == (two.id, "tiny", "x", 0)
    told = [{k: v for k, v in line.items() if k[0] != "_"} for line in one.history + two.history]
    assert told == [{k: v for k, v in line.items() if k != "step"} for line in lines_of(run_dir)]
    assert two.config["run"]["max_steps"] == 5
    assert two.config["stamp"]["command"].startswith("raysft train gpt2-tiny-cpu --name x")
    assert two.summary["summary/eval_loss_last"] == again.summary["eval_loss_last"]
    assert {"report.md", "report.png"} <= set(two.files)
    assert not found_in(run_dir, first.stdout, first.stderr)


def test_a_server_of_mlflow(tmp_path: Path, running_ray: dict[str, str], mlflow_uri: str) -> None:
    words = ("train", "gpt2-tiny-cpu", "--name", "x", "--set", "log.mlflow=tiny")
    environment = running_ray | {"MLFLOW_TRACKING_URI": mlflow_uri}
    start(tmp_path, *words, "--set", "run.max_steps=3", **environment)
    again = start(tmp_path, *words, "--set", "run.max_steps=5", "--resume", **environment)
    assert "log.mlflow: MLflow " not in again.stderr
    client = mlflow.MlflowClient(mlflow_uri)
    (run,) = mlflow_runs(client, "tiny")
    assert (run.info.run_name, run.info.status) == ("x", "FINISHED")
    lines = lines_of(tmp_path / "runs/x")
    for key in ("loss", "eval_loss", "tokens_per_second"):
        expected = [(line["step"], line[key]) for line in lines if key in line]
        assert history(client, run, key) == expected
    assert run.data.metrics["summary/eval_loss_last"] == again.summary["eval_loss_last"]
    assert run.data.params["optim.lr"] == str(again.summary["config"]["optim"]["lr"])
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"config.json", "report.md", "report.png"}


def test_the_trials_of_a_search(
    tmp_path: Path, running_ray: dict[str, str], mlflow_uri: str
) -> None:
    space = ("run.max_steps=4", "tune.sampler=grid", "tune.space.optim.lr={grid=[1e-3, 2e-3]}")
    space += ("tune.space.schedule.warmup_ratio=none", "tune.space.optim.max_grad_norm=none")
    sets = [word for setting in space for word in ("--set", setting)]
    environment = running_ray | OFFLINE | {"MLFLOW_TRACKING_URI": mlflow_uri}
    loggers = ("--set", "log.wandb=tiny", "--set", "log.mlflow=search")
    outcome = start(
        tmp_path, "tune", "tune-stability", "--name", "s", *sets, *loggers, **environment
    )
    results = json.loads((tmp_path / "runs/s/results.json").read_text())["trials"]
    curves = {one["number"]: [tuple(at) for at in one["curve"] if at[0]] for one in results}
    client = mlflow.MlflowClient(mlflow_uri)
    search, *trials = sorted(mlflow_runs(client, "search"), key=lambda run: run.info.run_name)
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {search.info.run_id}
    found = {int(run.info.run_name[-1]): history(client, run, "eval_loss") for run in trials}
    assert found == curves
    assert search.data.metrics["summary/eval_loss"] == outcome.summary["eval_loss"]
    grouped = {run.name: run for run in offline_runs(tmp_path / "runs/s") if run.group == "s"}
    assert grouped.keys() == {"s trial 1", "s trial 2"}
    heldout = [line for line in grouped["s trial 2"].history if "eval_loss" in line]
    assert [(line["_step"], line["eval_loss"]) for line in heldout] == curves[2]
    assert {run.exit_code for run in grouped.values()} == {0}


def test_one_that_hangs_keeps_no_process(tmp_path: Path, running_ray: dict[str, str]) -> None:
    """A server that takes the connection and never answers."""
    import socket

    words = ("train", "gpt2-tiny-cpu", "--name", "x", "--set", "log.mlflow=deaf")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        started = time.monotonic()
        outcome = start(
            tmp_path, *words, "--set", "run.max_steps=1", **running_ray,
            MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_TIMEOUT="600",
        )  # fmt: skip
    ended = time.monotonic() - started
    assert "it had not taken everything 20 s after the end" in outcome.stderr
    assert 20 < ended < outcome.summary["wall_s"] + 45
