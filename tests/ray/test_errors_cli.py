"""Every mistake a person can make: one clear message, the right exit code, no traceback."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from raysft.runs import snapshot
from tests.conftest import Outcome, run_raysft

TRAIN = ("train", "gpt2-tiny-cpu", "--name", "run", "--set", "run.max_steps=2")
GOOD = '{"prompt": "a", "completion": "b"}\n'
ONE_WORKER = ("--set", "scaling.workers=1")  # where more of them would show nothing more


def check(outcome: Outcome, code: int, *parts: str) -> None:
    assert outcome.code == code, outcome.stderr
    flat = " ".join(outcome.stderr.split())
    for part in parts:
        assert part in flat
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.count("error:") == 1


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.learn_rate=1", ["optim.learn_rate: no such key"]),
        ("batch.sequence_len=9", ["no such key", "did you mean 'seq_len'?"]),
        ("optim.lr=fast", ["optim.lr: input should be a valid number, but it is 'fast'"]),
        ("batch.seq_len=513", ["batch.seq_len 513 is past model.shape.n_positions 512"]),
        ("lr=1", ["--set 'lr=1' is not of the form section.key=value"]),
    ],
)
def test_wrong_config(tmp_path: Path, override: str, parts: list[str]) -> None:
    check(run_raysft(*TRAIN, "--set", override, cwd=tmp_path), 2, *parts)
    assert not (tmp_path / "runs").exists()


def test_missing_config(tmp_path: Path) -> None:
    outcome = run_raysft("train", "gpt2-tiny-cpu.toml", cwd=tmp_path)
    check(outcome, 2, "no config file or preset 'gpt2-tiny-cpu.toml'", "did you mean")


def own_data(tokenizer_dir: Path, path: Path | str) -> tuple[str, ...]:
    return (*TRAIN, "--set", f"model.tokenizer={tokenizer_dir}", "--set", f"data.path={path}")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("none.json", None, ["data.path: there is no file none.json"]),
        ("empty.jsonl", "", ["data.path: empty.jsonl holds no records"]),
        ("bad.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt"\n', ["bad.jsonl line 2"]),
        ("keys.jsonl", '{"ask": "a", "tell": "b"}\n', ["keys.jsonl line 1", "'ask', 'tell'"]),
        ("kind.jsonl", '{"prompt": "a", "completion": true}\n', ["'completion' is bool, not text"]),
        # Too late for a look at the first records: the job meets them.
        ("late.jsonl", GOOD * 1500 + '{"prompt"\n', ["late.jsonl line 1501: not valid JSON"]),
    ],
)
def test_wrong_data(
    tiny_model: Path,
    tmp_path: Path,
    running_ray: dict[str, str],
    name: str,
    content: str | None,
    parts: list[str],
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    check(run_raysft(*own_data(tiny_model, name), cwd=tmp_path, **running_ray), 2, *parts)
    assert not (tmp_path / "runs").exists()


def test_mended_data_trains_under_the_same_name(
    tiny_model: Path, tmp_path: Path, running_ray: dict[str, str]
) -> None:
    """A mistake that the job finds leaves the folder as it was: with the plan of a dry run."""
    (tmp_path / "d.jsonl").write_text(GOOD * 1500 + "{")
    assert run_raysft(*TRAIN, "--dry-run", cwd=tmp_path).code == 0
    planned = (tmp_path / "runs/run/run.json").read_text()
    assert run_raysft(*own_data(tiny_model, "d.jsonl"), cwd=tmp_path, **running_ray).code == 2
    assert [path.name for path in (tmp_path / "runs/run").iterdir()] == ["run.json"]
    assert (tmp_path / "runs/run/run.json").read_text() == planned
    outcome = run_raysft(*TRAIN, "--dry-run", cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr


def test_seq_len_past_the_positions_of_a_pretrained_model(
    tiny_model: Path, tmp_path: Path, running_ray: dict[str, str]
) -> None:
    options = ["--set", "model.init=pretrained", "--set", f"model.path={tiny_model}"]
    outcome = run_raysft(*own_data(tiny_model, "x.json"), *options, cwd=tmp_path, **running_ray)
    check(outcome, 2, "batch.seq_len 512 is past the 128 positions", "set batch.seq_len to 128")


def test_hub_out_of_reach_names_two_ways_out(tmp_path: Path, running_ray: dict[str, str]) -> None:
    data = write(tmp_path / "d.json", [{"prompt": "a", "completion": "b"}])
    options = ["--set", f"data.path={data}", "--set", "scaling.gpus_per_worker=0"]
    outcome = run_raysft("train", "gpt2", *options, cwd=tmp_path, HF_HUB_OFFLINE="1", **running_ray)
    check(outcome, 2, "'openai-community/gpt2' is no local folder", "local folder", "from scratch")


def test_missing_model_folder(tmp_path: Path) -> None:
    options = ["--set", "model.init=pretrained", "--set", "model.path=./nothing"]
    outcome = run_raysft(*TRAIN, *options, cwd=tmp_path)
    check(outcome, 2, "model.path: there is no folder ./nothing")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("scaling.cpus_per_worker=999", ["too few CPUs", "2 workers x 999 need 1998"]),
        ("scaling.gpus_per_worker=99", ["too few GPUs", "scaling.gpus_per_worker = 0"]),
    ],
)
def test_too_small_a_cluster_is_said_at_once(
    tmp_path: Path, override: str, parts: list[str]
) -> None:
    started = time.monotonic()
    check(run_raysft(*TRAIN, "--set", override, cwd=tmp_path), 2, *parts)
    assert time.monotonic() - started < 60


def test_resume_without_a_run_or_with_other_settings(tmp_path: Path) -> None:
    check(run_raysft(*TRAIN, "--resume", cwd=tmp_path), 2, "there is no runs/run/run.json")
    unnamed = run_raysft("train", "gpt2-tiny-cpu", "--resume", cwd=tmp_path)
    check(unnamed, 2, "--resume needs --name")
    assert run_raysft(*TRAIN, "--dry-run", cwd=tmp_path).code == 0
    check(run_raysft(*TRAIN, "--resume", cwd=tmp_path), 2, "has no checkpoint to resume from")
    (tmp_path / "runs/run/checkpoints/checkpoint_1").mkdir(parents=True)
    register = {
        "checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1", "metrics": {"step": 1}}]
    }
    write(tmp_path / "runs/run/checkpoints" / snapshot.FILE, register)
    other = ("--resume", "--set", "run.seed=1", "--set", "model.shape.n_layer=3")
    check(
        run_raysft(*TRAIN, *other, cwd=tmp_path),
        2,
        "model.shape.n_layer: 2 then, 3 now",
        "run.seed: 0 then, 1 now",
    )


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_a_damaged_run_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "runs/run").mkdir(parents=True)
    (tmp_path / "runs/run/run.json").write_text(content)
    for command in ((*TRAIN, "--resume"), ("export", "runs/run")):
        check(run_raysft(*command, cwd=tmp_path), 2, "runs/run/run.json is damaged")
    assert "run.json is damaged" in run_raysft("runs", cwd=tmp_path).stdout


def test_checkpoints_that_somebody_removed(tmp_path: Path) -> None:
    assert run_raysft(*TRAIN, "--dry-run", cwd=tmp_path).code == 0
    snapshot_file = tmp_path / "runs/run/checkpoints" / snapshot.FILE
    snapshot_file.parent.mkdir()
    results = [{"checkpoint_dir_name": "checkpoint_1", "metrics": {"step": 1}}]
    write(snapshot_file, {"checkpoint_results": results})
    gone = f"checkpoints/{snapshot.FILE} named checkpoint_1, which is gone"
    check(run_raysft(*TRAIN, "--resume", cwd=tmp_path), 2, gone, "no other is whole")
    check(run_raysft("export", "runs/run", cwd=tmp_path), 2, gone, "none lies beside it")


def test_an_address_without_a_cluster_is_told_within_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    outcome = run_raysft(*TRAIN, cwd=tmp_path, RAY_ADDRESS=address)
    check(outcome, 2, f"RAY_ADDRESS is {address}, and nobody answers there", "Unset RAY_ADDRESS")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("command", [("export", "nowhere"), ("generate", "./nowhere", "hello")])
def test_verbs_on_a_folder_that_is_not_there(tmp_path: Path, command: tuple[str, ...]) -> None:
    check(run_raysft(*command, cwd=tmp_path), 2, "nowhere")


def test_runs_of_an_empty_folder(tmp_path: Path) -> None:
    check(run_raysft("runs", cwd=tmp_path), 2, "no run in runs")


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of that size; the demo's checkpoint has 8 MiB, its model 2.004."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_disk_too_small_is_told_before_anything_is_written(
    small_disk: Path, tmp_path: Path
) -> None:
    storage = ("--set", f"run.storage={small_disk}")
    told = f"run.storage: the disk of {small_disk} has 1 MiB free; a checkpoint takes 6 MiB or more"
    check(run_raysft(*TRAIN, *storage, cwd=tmp_path), 2, told, "the model 2")
    assert not any(small_disk.iterdir())


@pytest.mark.parametrize("small_disk", ["2056k"], indirect=True)
def test_a_disk_too_full_for_the_model(
    small_disk: Path, tmp_path: Path, running_ray: dict[str, str]
) -> None:
    storage = ("--set", f"run.storage={small_disk}")
    storage += ("--set", "checkpoint.every_steps=0")  # so that only the model needs room
    outcome = run_raysft(*TRAIN, *ONE_WORKER, *storage, cwd=tmp_path, **running_ray)
    check(outcome, 1, "the disk is full", "run.storage")
    assert not (small_disk / "run/model").exists()
    summary = json.loads((small_disk / "run/summary.json").read_text())
    assert summary["status"] != "done"


@pytest.mark.parametrize("small_disk", ["12m"], indirect=True)
def test_a_disk_too_full_for_another_checkpoint(
    small_disk: Path, tmp_path: Path, running_ray: dict[str, str]
) -> None:
    """Training goes on without, and ends; the one there is stays."""
    sets = (f"run.storage={small_disk}", "run.max_steps=6", "checkpoint.every_steps=2")
    words = [word for setting in sets for word in ("--set", setting)]
    outcome = run_raysft(*TRAIN, *words, "--json", cwd=tmp_path, **running_ray)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr.count("no checkpoint at step") == 1
    assert "no checkpoint at step 4: it needs" in outcome.stderr
    assert (outcome.summary["checkpoints"], outcome.summary["checkpoints_skipped"]) == (1, 2)
    assert list(snapshot.checkpoints_by_step(small_disk / "run")) == [2]


def start(tmp_path: Path, *options: str) -> tuple["subprocess.Popen[str]", psutil.Process]:
    """A long run under way, and its job process once it has begun."""
    command = [Path(sys.executable).parent / "raysft", "train", "gpt2-tiny-cpu", "--name", "run"]
    process = subprocess.Popen(
        [*command, *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "runs/run/metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2)
    return process, psutil.Process(process.pid).children()[0]


def wait_for(condition: Callable[[], bool], timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.2)


def test_a_killed_job_is_reported_and_leaves_no_process(tmp_path: Path) -> None:
    process, job = start(tmp_path, *ONE_WORKER)
    family = job.children(recursive=True)
    job.kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the job ended without a word" in stderr
    assert "Traceback" not in stderr.partition("job.log ends:")[0]
    wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in family))
    listing = run_raysft("runs", cwd=tmp_path)
    assert "died" in listing.stdout


def test_an_interrupt_finishes_the_step_and_takes_a_checkpoint(tmp_path: Path) -> None:
    process, job = start(tmp_path, *ONE_WORKER)
    family = [job, *job.children(recursive=True)]
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this step and its checkpoint; a second Ctrl-C stops at once" in stderr
    assert "go on from the newest checkpoint" in stderr
    assert "Traceback" not in stderr
    (step,) = snapshot.checkpoints_by_step(tmp_path / "runs/run")
    assert 25 <= step < 300  # which is where the first would have been
    wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in family))
    resumed = run_raysft(
        "train", "gpt2-tiny-cpu", "--name", "run", "--resume", "--json", *ONE_WORKER,
        "--set", f"run.max_steps={step + 2}", cwd=tmp_path,
    )  # fmt: skip
    assert resumed.code == 0, resumed.stderr
    assert resumed.summary["steps"] == step + 2


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    """Signals to the job itself, whose workers are held so that no step is ever finished."""
    process, job = start(tmp_path)
    family = [job, *job.children(recursive=True)]
    workers = workers_of(job)
    for worker in workers:
        worker.suspend()
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted before the first checkpoint" in stderr
    assert "Traceback" not in stderr
    wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in family))


def workers_of(job: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in job.children(recursive=True):
        with suppress(psutil.Error):  # it ends while we look
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_dead_worker_is_replaced_where_that_is_allowed(tmp_path: Path) -> None:
    options = ("scaling.max_failures=1", "run.max_steps=60", "log.every_steps=1")
    sets = [word for option in options for word in ("--set", option)]
    process, job = start(tmp_path, *sets, "--set", "checkpoint.every_steps=10")
    wait_for(lambda: bool(snapshot.checkpoints(tmp_path / "runs/run")))
    workers_of(job)[0].kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "lost worker" in stderr
    assert "the workers start again from the newest checkpoint" in stderr
    summary = json.loads((tmp_path / "runs/run/summary.json").read_text())
    assert (summary["num_restarts"], summary["steps"]) == (1, 60)
    lines = (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(61))


def test_a_dead_worker_ends_the_run_where_it_is_not(tmp_path: Path) -> None:
    process, job = start(tmp_path, "--set", "scaling.max_failures=0")
    workers_of(job)[1].kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "lost worker" in stderr
    assert "Traceback" not in stderr
