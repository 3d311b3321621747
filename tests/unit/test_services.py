"""The real ones: a server of MLflow on loopback, and Weights & Biases' files of runs offline."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysft.runs import delivery, events, rundir, trackers
from raysft.runs.events import Metrics, Plan, Started
from tests import mlflow_server
from tests.unit.test_trackers import DONE, Run, trial, wait_until
from tests.wandb_files import OfflineRun, offline_runs

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("GATHER_S", 0.05), ("RETRY_S", 0.3)):
        monkeypatch.setattr(delivery, name, seconds)
    monkeypatch.setattr(trackers, "ENDS_WITHIN_S", 60.0)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights & Biases without a network; its process is gone at the end."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    import wandb

    wandb.teardown()


def written(run_dir: Path) -> list[OfflineRun]:
    """Once Weights & Biases' process is gone, which writes on after a run has finished."""
    import wandb

    wandb.teardown()
    return offline_runs(run_dir)


@pytest.fixture
def client(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    return mlflow.MlflowClient()


def mlflow_runs(client: Any, name: str) -> list[Any]:
    """The oldest first."""
    found = client.get_experiment_by_name(name)
    order = ["attributes.start_time ASC"]
    return list(client.search_runs([found.experiment_id], order_by=order)) if found else []


def history(client: Any, run: Any, key: str) -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)]


def train(run: Run, start: int, last: int, status: str = "done") -> None:
    run.trackers(Plan(9))
    run.trackers(Started(start))
    for step in range(start + (start > 0), last + 1):
        run.trackers(Metrics(step, {"loss": 8.0 / (step + 1), "time_left_s": 1.0, "lr": None}))
    (run.folder / rundir.REPORT).write_text(f"report of step {last}")
    (run.folder / "report.png").write_bytes(b"png")
    run.trackers.end(DONE | {"status": status, "steps": last})
    assert not run.warnings()


@pytest.mark.usefixtures("offline")
def test_wandb_has_the_run_and_goes_on_in_it(tmp_path: Path) -> None:
    """Ended after step 4, gone on with from a checkpoint of step 2 and with another rate."""
    train(Run(tmp_path, "optim.lr=0.5"), 0, 4, status="interrupted")
    train(Run(tmp_path, "optim.lr=0.25"), 2, 6)
    first, again = written(tmp_path)
    assert (first.project, first.name, first.group) == ("p", tmp_path.name, "")
    assert again.id == first.id
    assert (first.exit_code, again.exit_code) == (1, 0)
    lines = [(line["_step"], line["loss"]) for line in first.history + again.history]
    assert lines == [(step, 8.0 / (step + 1)) for step in range(7)]
    assert not [key for key in first.history[0] if key[0] != "_" and key != "loss"]
    assert (first.config["optim"]["lr"], again.config["optim"]["lr"]) == (0.5, 0.25)
    assert first.config["stamp"]["command"] == "raysft train x"
    assert (again.summary["status"], again.summary["summary/steps"]) == ("done", 6)
    assert {"report.md", "report.png"} <= set(again.files)
    (report,) = tmp_path.glob("wandb/latest-run/files/report.md")
    assert report.read_text() == "report of step 6"
    assert not report.is_symlink()


@pytest.mark.usefixtures("offline")
def test_wandb_groups_the_trials_of_a_search(tmp_path: Path) -> None:
    run = Run(tmp_path, verb="tune")
    run.trackers(events.Search(2, 2))
    for told in (trial(1, "running", 5, 2.0), trial(2, "running", 5, 4.0), trial(2, "done", 9, 1)):
        run.trackers(told)
    run.trackers.end({"status": "failed"})
    assert not run.warnings()
    search, one, two = sorted(written(tmp_path), key=lambda found: found.id)
    assert (search.group, search.exit_code) == ("", 1)
    assert one.group == two.group == search.name == tmp_path.name
    assert (one.name, one.config["optim"]["lr"]) == (f"{search.name} trial 1", 0.1)
    assert [(line["loss"], line["eval_loss"]) for line in one.history] == [(2.0, 3.0)]
    assert [line["_step"] for line in two.history] == [5, 9]
    assert (one.exit_code, two.exit_code) == (1, 0)


@pytest.mark.usefixtures("offline")
def test_wandb_without_a_key_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is there a network to ask with one."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = Run(tmp_path)
    run.trackers(Plan(9))
    wait_until(lambda: bool(run.trackers.deliveries["wandb"].trouble))
    run.trackers.end(DONE)
    (warning,) = run.warnings()
    assert warning.startswith("log.wandb: Weights & Biases lacks a part of this run: ")


def test_mlflow_has_the_run_and_goes_on_in_it(tmp_path: Path, client: Any) -> None:
    settings = ("log.wandb=none", "log.mlflow=same one")
    train(Run(tmp_path, *settings, "optim.lr=0.5"), 0, 4, status="interrupted")
    (before,) = mlflow_runs(client, "same one")
    assert before.info.status == "KILLED"
    train(Run(tmp_path, *settings, "optim.lr=0.25"), 2, 6)
    (run,) = mlflow_runs(client, "same one")
    assert (run.info.run_id, run.info.status) == (before.info.run_id, "FINISHED")
    assert run.info.run_name == tmp_path.name
    assert history(client, run, "loss") == [(step, 8.0 / (step + 1)) for step in range(7)]
    assert run.data.metrics.keys() == {"loss", "summary/steps", "summary/wall_s"}
    assert run.data.params["optim.lr"] == "0.5"  # which it lets nobody change
    assert "model.path" not in run.data.params
    assert run.data.tags["raysft.command"] == "raysft train x"
    artifacts = client.list_artifacts(run.info.run_id)
    assert {file.path for file in artifacts} == {"config.json", "report.md", "report.png"}
    report = client.download_artifacts(run.info.run_id, "report.md", str(tmp_path))
    assert Path(report).read_text() == "report of step 6"
    config = client.download_artifacts(run.info.run_id, "config.json", str(tmp_path))
    assert '"optim.lr": 0.25' in Path(config).read_text()


def test_mlflow_nests_the_trials_of_a_search(tmp_path: Path, client: Any) -> None:
    run = Run(tmp_path, "log.wandb=none", "log.mlflow=trials", verb="tune")
    run.trackers(events.Search(2, 2))
    for told in (trial(1, "running", 5, 2.0), trial(2, "diverged", 5, 4.0)):
        run.trackers(told)
    run.trackers.end(DONE)
    assert not run.warnings()
    found = {one.info.run_name: one for one in mlflow_runs(client, "trials")}
    search = found.pop(tmp_path.name)
    assert {one.data.tags["mlflow.parentRunId"] for one in found.values()} == {search.info.run_id}
    one, two = found[f"{tmp_path.name} trial 1"], found[f"{tmp_path.name} trial 2"]
    assert (one.info.status, two.info.status) == ("FINISHED", "FAILED")
    assert two.data.params["optim.lr"] == "0.2"
    assert history(client, one, "eval_loss") == [(5, 3.0)]


def test_mlflow_that_dies_and_comes_back(
    mlflow_program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning, and nothing lost; where it stays away the run ends without it."""
    port = mlflow_server.free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = Run(tmp_path, "log.wandb=none", "log.mlflow=away")
    told = run.trackers
    with mlflow_server.serving(mlflow_program, tmp_path / "server", port):
        told(Plan(9))
        told(Started(0))
        run.steps(0, 3)
        wait_until(lambda: told.kept["mlflow"].step == 3)
    run.steps(4, 6)
    wait_until(lambda: bool(told.deliveries["mlflow"].trouble))
    run.steps(7, 8)
    with mlflow_server.serving(mlflow_program, tmp_path / "server", port):
        told.end(DONE)
        client = mlflow.MlflowClient()
        (there,) = mlflow_runs(client, "away")
        losses = history(client, there, "loss")
        assert [step for step, _ in losses] == [*range(9)]
        assert there.info.status == "FINISHED"
    assert len(run.warnings()) == 1
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"  # the user's own
