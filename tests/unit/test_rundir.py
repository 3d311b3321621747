import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raysft import job
from raysft.carriers.local import remove_scratch
from raysft.cli.runs_table import read as read_folder
from raysft.config.load import load_config
from raysft.config.of_run import flat
from raysft.data.loader import StepData
from raysft.errors import UserError
from raysft.estimate.families import gpt2_dims
from raysft.runs import rundir, snapshot
from raysft.runs.events import Checkpoint, Metrics, Started
from raysft.runs.loggers import jsonl_logger, metrics_line
from raysft.runtime.fit import total_steps
from raysft.runtime.resources import require_resources
from raysft.studies.results import header
from raysft.train.clock import StepClock, percentile
from raysft.train.metrics import due
from raysft.verbs.settle import chosen_before
from raysft.verbs.train import check_resume
from raysft.verbs.tune import check_resume as check_resume_of_search

CPU = torch.device("cpu")


def test_status_of_a_run(tmp_path: Path) -> None:
    assert rundir.status(tmp_path) == "planned"
    for summary, expected in [
        ({"status": "done"}, "done"),
        ({"status": "failed"}, "failed"),
        ({"status": "running", "host": os.uname().nodename, "pid": os.getpid()}, "running"),
        ({"status": "running", "host": os.uname().nodename, "pid": 2**22 + 1}, "died"),
        ({"status": "running", "host": "elsewhere", "pid": 2**22 + 1}, "running"),
    ]:
        rundir.write_json(tmp_path / rundir.SUMMARY, summary)
        assert rundir.status(tmp_path) == expected


def test_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    rundir.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        rundir.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json is damaged"):
        rundir.read_json(tmp_path / "run.json")


def test_due() -> None:
    assert [step for step in range(1, 8) if due(step, 3, last=7)] == [3, 6, 7]
    assert [step for step in range(1, 8) if due(step, 0, last=7)] == [7]


def test_steps_from_epochs_are_rounded_up() -> None:
    config = load_config("gpt2", ["run.epochs=1.5"])
    assert total_steps(config, 1000) == 24  # 1500 records / 64 = 23.4
    assert total_steps(load_config("gpt2", ["run.max_steps=7"]), 1000) == 7


def test_resources() -> None:
    config = load_config("gpt2-tiny-cpu")
    require_resources(config, [{"CPU": 2.0}])
    require_resources(config, [{"CPU": 1.0}, {}, {"CPU": 1.0}])
    with pytest.raises(UserError, match="2 workers x 1 need 2, and the cluster has 1"):
        require_resources(config, [{"CPU": 1.0}])
    with pytest.raises(UserError, match="too few GPUs"):
        require_resources(load_config("gpt2"), [{"CPU": 8.0}])
    wide = load_config("gpt2-tiny-cpu", ["scaling.cpus_per_worker=2"])
    with pytest.raises(UserError, match="the nodes have room for 0, 1, 0 of the 2"):
        require_resources(wide, [{"CPU": 1.0}, {"CPU": 2.0}, {"CPU": 1.0}])


def test_resumed_metrics_drop_what_will_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write = jsonl_logger(path, metrics_line)
    for step in range(5):
        write(Metrics(step, {"loss": 1.0}))
    path.write_text(path.read_text() + '{"step": 5, "lo')
    write(Started(2))
    write(Checkpoint(2))
    write(Metrics(3, {"loss": 0.5}))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        *({"step": step, "loss": 1.0} for step in range(3)),
        {"step": 3, "loss": 0.5},
    ]


def test_workers_that_start_over_drop_all_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write = jsonl_logger(path, metrics_line)
    write(Started(0))
    write(Metrics(0, {"eval_loss": 1.0}))
    write(Started(0))
    assert path.read_text() == ""


def test_flat_keys() -> None:
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_clock_leaves_out_the_first_and_skipped_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 9.0, 10.0, 12.0, 20.0, 21.0, 30.0, 34.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = StepClock(CPU)
    for applied in (True, True, False, True):  # 9, 2, 1 and 4 seconds
        clock.start()
        clock.stop(StepData([], 60, 30, 30, 600), applied=applied)
    assert clock.summary() == {
        "tokens_per_second": 20.0,
        "supervised_tokens_per_second": 10.0,
        "step_time_p50_s": 3.0,
        "step_time_p95_s": pytest.approx(3.9),
    }
    # 6 seconds, 120 tokens, 60 of them supervised, 1,200 pairs; see test_estimate for the parts.
    dims = gpt2_dims(1, 2, 1, 8, 3)
    assert clock.flops_per_second(dims) == (72 * 4 * 120 + 12 * 2 * 1200 + 6 * 3 * 2 * 60) / 6


class Event:
    """As torch.cuda.Event: it has a time only when the device has come to it."""

    now_ms = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at_ms: float | None = None

    def record(self, stream: str) -> None:
        assert stream == "stream of cuda:1"
        self.due_ms = Event.now_ms

    def synchronize(self) -> None:
        self.at_ms = self.due_ms

    def elapsed_time(self, end: "Event") -> float:
        assert end.at_ms is not None
        return end.at_ms - self.due_ms


def test_a_gpu_times_its_steps_itself_and_waits_when_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: f"stream of {device}")
    clock = StepClock(torch.device("cuda", 1))
    laps = []
    for milliseconds in (9000.0, 2000.0, 4000.0):
        clock.start()
        Event.now_ms += milliseconds
        laps.append(clock.stop(StepData([], 60, 30, 30, 600), applied=True))
    assert all(lap.marks[1].at_ms is None for lap in laps if lap.marks)
    assert [lap.seconds for lap in laps] == [9.0, 2.0, 4.0]
    assert [lap.marks for lap in laps] == [None] * 3
    assert clock.summary()["tokens_per_second"] == 20.0


def test_nothing_timed_is_null() -> None:
    assert StepClock(CPU).summary()["tokens_per_second"] is None
    assert percentile([], 50) is None


def test_resume_tells_fixed_from_changed_settings(tmp_path: Path) -> None:
    before = load_config("gpt2-tiny-cpu", ["run.name=x"])
    rundir.write_json(tmp_path / rundir.RUN, {"config": before.model_dump(mode="json")})
    with pytest.raises(UserError, match="has no checkpoint to resume from"):
        check_resume(tmp_path, before)
    (tmp_path / rundir.CHECKPOINTS / "checkpoint_1").mkdir(parents=True)
    register = {
        "checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1", "metrics": {"step": 1}}]
    }
    rundir.write_json(tmp_path / rundir.CHECKPOINTS / snapshot.FILE, register)

    def warnings(override: str) -> list[str]:
        return check_resume(tmp_path, load_config("gpt2-tiny-cpu", ["run.name=x", override]))

    assert warnings("log.every_steps=1") == []
    assert warnings("run.max_steps=900") == ["run.max_steps was 600 and is now 900"]
    assert warnings("engine.zero_stage=1") == ["engine.zero_stage was 3 and is now 1"]
    with pytest.raises(UserError, match=r"batch.seq_len: 512 then, 256 now"):
        check_resume(tmp_path, load_config("gpt2-tiny-cpu", ["run.name=x", "batch.seq_len=256"]))


DAMAGED = {
    "{}": "it lacks ",
    "[]": "it holds a list, not an object",
    "{": "is damaged: ",
    '{"verb": "train", "config": {}, "stamp": 3}': "it lacks ",
}


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_run_json_is_told_by_whoever_reads_it(tmp_path: Path, content: str) -> None:
    file = tmp_path / "run" / rundir.RUN
    file.parent.mkdir()
    file.write_text(content)
    config = load_config("gpt2-tiny-cpu")
    readers: list[Callable[[], object]] = [
        lambda: check_resume(file.parent, config),
        lambda: check_resume_of_search(file.parent, config),
        lambda: header("x", file.parent),
    ]
    for read in readers:
        with pytest.raises(UserError) as told:
            read()
        assert f"{file} is damaged" in str(told.value)
        assert DAMAGED[content] in str(told.value)
    assert chosen_before(file.parent) == {}
    assert read_folder(file.parent).reason == "run.json is damaged"
    assert job.main(str(file)) == 2


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"status": "done", "eval_loss_last": "x"}'])
def test_a_damaged_summary_is_named_in_the_table(tmp_path: Path, content: str) -> None:
    spec = {"verb": "train", "config": {"model": {}}, "stamp": {"utc": "2026-01-01T00:00:00"}}
    rundir.write_json(tmp_path / rundir.RUN, spec)
    assert read_folder(tmp_path).status == "planned"
    (tmp_path / rundir.SUMMARY).write_text(content)
    assert read_folder(tmp_path).reason == "summary.json is damaged"
    remove_scratch(tmp_path)


def test_a_running_summary_without_a_process_is_of_a_run_that_died(tmp_path: Path) -> None:
    summary = {"status": "running", "host": os.uname().nodename}
    rundir.write_json(tmp_path / rundir.SUMMARY, summary)
    assert rundir.status(tmp_path) == "died"


def test_broken_lines_of_the_metrics_are_dropped_at_a_resumption(tmp_path: Path) -> None:
    path = tmp_path / rundir.METRICS
    path.write_bytes(b'{"step": 1}\n[]\n{}\n\xff\n{"step": "x"}\n{"step": 2}\n{"st')
    jsonl_logger(path, metrics_line)(Started(2))
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
