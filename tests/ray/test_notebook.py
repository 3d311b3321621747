"""The functions for notebooks, against the command line and what a run leaves."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import raysft
from raysft.errors import RunError, UserError
from raysft.runs import processes
from tests.conftest import run_raysft

nbformat = pytest.importorskip("nbformat")
NOTEBOOK = Path(__file__).parents[2] / "docs/notebook.ipynb"
SHORT: dict[str, Any] = {
    "data": {"max_records": 100},
    "run": {"max_steps": 3, "samples": 0},
    "eval": {"every_steps": 2},
    "log": {"every_steps": 1, "tensorboard": False},
    "scaling": {"workers": 1},
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def ray_there(running_ray: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in running_ray.items():
        monkeypatch.setenv(name, value)
    return running_ray


def outputs(notebook: Any) -> dict[str, list[Any]]:
    """By the source of the cell."""
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def kinds(outs: list[Any]) -> set[str]:
    """Such as {"stdout"} or {"text/plain", "image/png"}."""
    return {kind for out in outs for kind in out.get("data", {out.get("name"): ""})}


def test_the_notebook_of_the_docs_runs(tmp_path: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = outputs(notebook)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    found = outputs(notebook)
    for source, outs in found.items():
        assert kinds(outs) == kinds(kept[source]), "make it again: what is shown has changed"
    assert any("image/png" in out.get("data", {}) for out in found["run.plot()"])
    lines = (tmp_path / "runs/notebook/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 60


def test_a_run_is_that_of_the_command(tmp_path: Path, ray_there: dict[str, str]) -> None:
    run = raysft.train("gpt2-tiny-cpu", name="called", **SHORT)
    sets = [
        f"{section}.{key}={json.dumps(value)}"
        for section, keys in SHORT.items()
        for key, value in keys.items()
    ]
    typed = [word for one in sets for word in ("--set", one)]
    other = run_raysft(
        "train", "gpt2-tiny-cpu", "--name", "typed", *typed, "--json", cwd=tmp_path, **ray_there
    )
    assert other.code == 0, other.stderr
    same = raysft.load_run("typed")
    ours, theirs = run.config, same.config
    assert ours.pop("run") == theirs.pop("run") | {"name": "called"}
    assert ours == theirs
    assert run.status == "done"
    losses = run.metrics.loss.dropna()
    assert list(losses) == list(same.metrics.loss.dropna())
    assert list(losses.index) == [1, 2, 3]
    assert run.summary["eval_loss_last"] == run.metrics.eval_loss.dropna().iloc[-1]
    with pytest.raises(UserError, match="holds a run already"):
        raysft.train("gpt2-tiny-cpu", name="called", **SHORT)
    longer = {**SHORT, "run": {"max_steps": 5, "samples": 0}}
    again = raysft.train("gpt2-tiny-cpu", name="called", resume=True, **longer)
    assert list(again.metrics.loss.dropna().index) == [1, 2, 3, 4, 5]
    assert len(run.metrics) == len(again.metrics)  # it is read anew
    model, tokenizer = again.model()
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)
    (answer,) = again.generate(["Sort the words.\npear apple"], max_new_tokens=4)
    assert len(tokenizer(answer).input_ids) <= 4


def test_a_run_that_fails_raises_what_it_says(tmp_path: Path, tiny_model: Path) -> None:
    hot = {**SHORT, "optim": {"lr": 1e30, "max_grad_norm": 0.0}}
    with pytest.raises(RunError, match="lower optim"):
        raysft.train("gpt2-tiny-cpu", name="hot", **hot)
    assert raysft.load_run("hot").status == "failed"
    records = tmp_path / "records.jsonl"
    line = '{"instruction": "a", "response": "b"}\n'
    records.write_text(line * 500 + '{"broken\n')  # further than what is looked at before a run
    config = {"model": {"path": tiny_model}, "data": {"path": records}, "batch": {"seq_len": 128}}
    with pytest.raises(UserError, match=r"records\.jsonl.*501"):
        raysft.train(config, name="broken", scaling={"workers": 1})
    assert not (tmp_path / "runs/broken").exists()


def test_other_processes_of_a_notebook_live_on() -> None:
    """A job that is killed leaves processes, which are ended; those of others are left alone."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    mine = subprocess.Popen(command)
    spared = processes.children()
    left = subprocess.Popen(command)
    try:
        processes.end_children(spared=spared)
        left.wait(10)
        time.sleep(0.1)
        assert psutil.pid_exists(mine.pid)
        assert mine.poll() is None
    finally:
        for one in (mine, left):
            one.kill()
            one.wait()
