"""Events as types, as lines of JSON, and as a run of the version before has written them."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from raysft.cli import terminal
from raysft.cli.console import Renderer
from raysft.cli.metrics_table import MetricsTable
from raysft.cli.runs_table import found_in
from raysft.config.preference import Dpo, Ppo, RewardModel
from raysft.runs import events, rundir, snapshot
from raysft.runs.events import KINDS, Metrics, from_wire, to_wire
from raysft.runs.metrics import METRICS, columns, columns_for, duration
from raysft.train.objectives.dpo import dpo
from raysft.train.objectives.ppo import ppo
from raysft.train.objectives.reward import reward
from raysft.verbs.registry import VERBS

# Of `raysft train gpt2-tiny-cpu`, interrupted after a checkpoint: what its job wrote to standard
# output, and to its folder but for the weights, before events were types.
BEFORE = Path(__file__).parent / "run_of_version_0_1"
LINES = [json.loads(line) for line in (BEFORE / "events.jsonl").read_text().splitlines()]


def example(kind: type[Any]) -> Any:
    """An event with a value in each field."""
    plain = {"message": "m", "facts": {"a": 1}, "values": {"loss": 1.5}, "result": {"status": "x"}}
    return kind(**{field.name: plain.get(field.name, 3) for field in fields(kind)})


@pytest.mark.parametrize("name", KINDS)
def test_an_event_comes_back_from_its_line(name: str) -> None:
    event = example(KINDS[name])
    wire = json.loads(json.dumps(to_wire(event)))
    assert wire["event"] == name
    assert from_wire(wire) == event
    if "facts" not in wire and name not in ("data", "metrics", "case"):
        assert from_wire(wire | {"new_in_another_version": 1}) == event


def test_what_this_version_does_not_know_is_left_out() -> None:
    assert from_wire({"event": "of_another_version", "x": 1}) is None
    assert from_wire({"event": "started"}) is None  # without its step
    assert from_wire({}) is None


SINCE = {"workers": {"trained": None}}  # by event, what that version did not tell


def test_lines_of_the_version_before_are_the_same_today() -> None:
    kinds = {line["event"] for line in LINES}
    assert kinds >= {"status", "plan", "data", "placed", "workers", "started", "metrics", "end"}
    for line in LINES:
        event = from_wire(line)
        assert event is not None, line
        assert to_wire(event) == SINCE.get(line["event"], {}) | line


def test_the_console_shows_a_run_of_the_version_before(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.stderr.capture() as shown:
        render = Renderer()
        for line in LINES:
            event = from_wire(line)
            assert event is not None
            render(event)
    text = shown.get()
    for part in ("8,000 to train", "held-out", "superv./s", "parameters     525,312"):
        assert part in text
    steps = [line for line in LINES if line["event"] == "metrics"]
    assert all(f"\n{line['step']:>6} " in text for line in steps)
    assert render.end is not None
    assert render.end.summary["status"] == "interrupted"
    assert "go on from the newest checkpoint with\n  raysft train" in VERBS["train"].interrupted(
        render.end.summary
    )
    capsys.readouterr()


def test_a_run_directory_of_the_version_before_is_read(tmp_path: Path) -> None:
    run_dir = tmp_path / "cut"
    shutil.copytree(BEFORE, run_dir)
    assert rundir.status(run_dir) == "interrupted"
    assert list(snapshot.checkpoints_by_step(run_dir)) == [68]
    assert [(run.verb, run.status) for run in found_in(tmp_path, planned=False)] == [
        ("train", "interrupted")
    ]


def test_each_metric_of_a_run_stands_in_the_one_list() -> None:
    known = {metric.key for metric in METRICS}
    written = {key for line in LINES if line["event"] == "metrics" for key in line}
    objectives = [dpo(Dpo()), ppo(Ppo()), reward(RewardModel())]
    learnt = {key for one in objectives for key in (*one.measures, *one.reports, *one.facts)}
    learnt -= written
    assert learnt <= known
    # The run was of a CPU, which keeps nothing in reserve, and was not asked on the way.
    unwritten = {"reserved_memory_gib", "exact_match"}
    assert written - {"event", "step"} == known - unwritten - learnt
    docs = Path(__file__).parents[2] / "docs"
    pages = {name: (docs / f"{name}.md").read_text() for name in ("training", "preferences", "ppo")}
    own = {"ppo": {*ppo(Ppo()).measures, *ppo(Ppo()).facts}}
    own["preferences"] = learnt - own["ppo"]
    own["training"] = known - learnt
    missing = [(p, k) for p, keys in own.items() for k in keys if f"| `{k}` |" not in pages[p]]
    assert missing == []


def test_a_row_of_the_console_by_hand() -> None:
    assert [metric.heading for metric in columns({})][:2] == ["loss", "held-out"]
    metrics = Metrics(1200, {"loss": 1.23456, "time_left_s": 3725.0, "lr": None})
    heading, row = MetricsTable().lines(metrics, None)
    assert heading.startswith("[bold]  step    loss held-out")
    assert row.startswith(" 1,200  1.2346 ")
    assert row.endswith("1:02:05")
    assert (duration(59.6), duration(61), duration(3600)) == ("1:00", "1:01", "1:00:00")


@pytest.mark.parametrize(
    ("width", "left_out"), [(120, []), (80, ["GiB"]), (60, ["GiB", "left", "grad norm"])]
)
def test_the_columns_of_pairs(width: int, left_out: list[str]) -> None:
    known = columns({"eval_accuracy": 0.5})
    assert [metric.heading for metric in known][:5] == [
        "loss", "held-out", "right", "held-out", "rate",
    ]  # fmt: skip
    shown = columns_for(known, width, 6)
    assert {metric.heading for metric in known if metric not in shown} == set(left_out)
    assert sum(metric.width for metric in shown) + 6 <= width


def test_events_are_frozen() -> None:
    with pytest.raises(AttributeError):
        events.Started(1).step = 2  # type: ignore[misc]
