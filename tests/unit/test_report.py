"""report.md of a run, what the last lines say, and `raysft runs show` and `rm`, as commands."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from raysft import job
from raysft.cli.last_words import next_steps, quoted
from raysft.config.load import load_config
from raysft.runs import events, rundir
from raysft.runs.lock import held, ignore
from raysft.runs.loggers import loggers
from raysft.runs.phases import Phases, begun_by
from raysft.studies.figures import loss_axis, new_figure, step_axis
from raysft.studies.training.figure import draw
from raysft.train.mailbox import Ticker
from raysft.verbs.registry import VERBS
from tests.conftest import run_raysft

BEFORE = Path(__file__).parent / "run_of_version_0_1"
DATA = next(
    line
    for line in map(json.loads, (BEFORE / "events.jsonl").read_text().splitlines())
    if line["event"] == "data"
)
SAMPLE = {"instruction": "Sort | the\n```words```", "reference": "a b", "answer": "b a"}
FULL = {
    "status": "done", "verb": "train", "steps": 68,
    "train_loss_first": 6.36, "eval_loss_first": 6.3, "train_loss_last": 0.7,
    "eval_loss_last": 0.71, "data": DATA | {"findings": [
        {"name": "x", "records": 12, "message": "answers are cut", "advice": "raise batch.seq_len"}
    ]}, "samples": [SAMPLE], "phases_s": {"starting Ray": 6.0, "training": 18.0},
    "restarts": [{"reason": "a worker died\nat night", "workers": 2, "step": 40, "seconds": 12.5,
                  "parts": {}}],
}  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of the version before, as if it had gone well."""
    folder = tmp_path / "runs" / "first"
    shutil.copytree(BEFORE, folder)
    config = load_config("gpt2-tiny-cpu", ["run.name=first", "optim.lr=0.002"])
    spec = json.loads((folder / rundir.RUN).read_text())
    rundir.write_json(folder / rundir.RUN, spec | {"config": config.model_dump(mode="json")})
    before = json.loads((folder / rundir.SUMMARY).read_text())
    rundir.write_json(folder / rundir.SUMMARY, before | FULL | {"run_dir": "runs/first"})
    return folder


def test_a_report_has_what_a_colleague_asks(run_dir: Path) -> None:
    outcome = run_raysft("report", "first", cwd=run_dir.parents[1])
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout == "runs/first/report.md\n"
    text = (run_dir / "report.md").read_text()
    assert text.startswith("# first: done\n\n![")
    for part in (
        "| held-out loss | 6.3000 | 0.7100 |",
        "| demo, alpaca | 8,200 |",
        "- 12: answers are cut. What to do: raise batch.seq_len.",
        "    Sort | the\n    ```words```\n",
        "| 40 | 2 | 0:12 | a worker died |",
        "| training | 18.0 | 75% |",
        "\nlr = 0.002\n",
        "```sh\nraysft train gpt2-tiny-cpu",
    ):
        assert part in text, part
    assert "betas" not in text  # a default
    assert (run_dir / "report.png").read_bytes().startswith(b"\x89PNG")
    toml = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert toml is not None
    (run_dir / "again.toml").write_text(toml[1])
    again = load_config(str(run_dir / "again.toml"), [])
    assert again == load_config("gpt2-tiny-cpu", ["run.name=first", "optim.lr=0.002"])


def test_a_run_that_was_cut_has_a_report_of_what_it_did(tmp_path: Path) -> None:
    shutil.copytree(BEFORE, tmp_path / "cut")
    VERBS["train"].write_report(tmp_path / "cut")  # type: ignore[misc]
    text = (tmp_path / "cut" / "report.md").read_text()
    assert text.startswith("# cut: interrupted\n\n![")
    assert "## Data" not in text


def test_studies_have_the_same_command(tmp_path: Path) -> None:
    results = Path(__file__).parents[2] / "benchmarks/seq-len/preset/results.json"
    found = json.loads(results.read_text())
    spec = {"verb": "bench seq-len", "config": found["config"], "stamp": found["stamp"]}
    rundir.write_run(tmp_path / "runs" / "x", spec)
    shutil.copy(results, tmp_path / "runs" / "x")
    assert run_raysft("report", "runs/x", cwd=tmp_path).stdout == "runs/x/report.md\n"
    assert (tmp_path / "runs" / "x" / "seq-len.png").exists()


def test_a_report_that_fails_is_a_warning(run_dir: Path) -> None:
    (run_dir / rundir.RUN).write_text("{")
    seen: list[Any] = []
    job.write_report(VERBS["train"], run_dir, seen.append)
    assert [type(event) for event in seen] == [events.Warning]
    assert "no report.md: UserError" in seen[0].message


def test_nothing_to_report_is_told(tmp_path: Path) -> None:
    assert run_raysft("train", "gpt2-xl", "--dry-run", "--name", "x", cwd=tmp_path).code == 0
    outcome = run_raysft("report", "x", cwd=tmp_path)
    assert outcome.code == 2
    assert "has taken no step yet" in outcome.stderr


LINES = [
    {"step": 0, "eval_loss": 6.3},
    {"step": 1, "loss": 6.4, "lr": 1e-3, "grad_norm": 1e4, "tokens_per_second": 10.0},
    *({"step": n, "loss": 0.1, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_second": 9.0,
       "eval_loss": 0.2} for n in range(2, 6)),
]  # fmt: skip


def test_a_figure_has_whole_steps_and_room_for_its_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(
        "raysft.studies.training.figure.save", lambda figure, _: kept.append(figure)
    )
    draw(tmp_path / "x.png", LINES, "x", max_grad_norm=1.0)
    draw(tmp_path / "x.png", [{"step": 0, "eval_loss": 6.3}], "x", max_grad_norm=0.0)
    figure = kept[0]
    figure.canvas.draw()
    loss, _, norm, tokens = figure.axes
    assert loss.get_yscale() == norm.get_yscale() == "log"
    ticks = tokens.get_xticks()
    assert list(ticks) == [round(tick) for tick in ticks]
    assert tokens.get_xlim()[0] < 0
    assert tokens.get_xlim()[1] > 5
    assert tokens.get_ylim() == (0, pytest.approx(10.6))
    kept[1].canvas.draw()


def test_axes_of_losses() -> None:
    axes = new_figure(4, 3).subplots()
    loss_axis(axes.yaxis, axes.set_yscale, [3.5, 2.1])
    assert axes.get_yscale() == "linear"
    loss_axis(axes.yaxis, axes.set_yscale, [6.3, 0.0, 0.05])
    assert axes.get_yscale() == "log"
    step_axis(axes)
    axes.set_xlim(0, 5)
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_what_to_do_next_can_be_typed(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_dir.parents[1])
    folder = Path("runs/first")
    (folder / rundir.MODEL).mkdir()
    lines = next_steps(folder, {"samples": [SAMPLE]})
    assert lines[0] == "next:"
    assert lines[1].startswith("  raysft generate runs/first $'Sort | the")
    assert lines[2:] == [
        "  raysft export runs/first --to first-model",
        "  raysft report runs/first",
    ]
    (folder / rundir.REPORT).touch()
    assert next_steps(folder, {})[-1] == "to show others: runs/first/report.md"
    assert next_steps(Path("/on/a/cluster"), {}) == []
    judge = next_steps(folder, {"verb": "reward"})
    assert not any("generate" in line for line in judge)  # it scores answers and writes none


@pytest.mark.parametrize("text", ["plain", "it's\na \\n 'b'", "two\n\nlines", "a $HOME `x`\nb"])
def test_a_question_is_quoted_for_the_shell(text: str) -> None:
    line = f"printf %s {quoted(text)}"
    assert "\n" not in line
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == text


def test_runs_are_listed_shown_and_removed(run_dir: Path) -> None:
    folder = run_dir.parents[1]
    assert run_raysft("train", "gpt2-xl", "--dry-run", "--name", "dry", cwd=folder).code == 0
    listed = run_raysft("runs", "--json", cwd=folder)
    assert [run["name"] for run in json.loads(listed.stdout)] == ["first"]
    assert json.loads(listed.stdout)[0]["eval_loss_last"] == 0.71
    every = run_raysft("runs", "runs", "--all", cwd=folder)
    assert "dry" in every.stdout
    assert "planned" in every.stdout
    seen = run_raysft("runs", "show", "first", cwd=folder)
    assert seen.code == 0, seen.stderr
    assert "held-out loss" in seen.stdout
    assert "starting Ray" in seen.stdout
    facts = json.loads(run_raysft("runs", "show", "runs/first", "--json", cwd=folder).stdout)
    assert facts["summary"]["steps"] == 68

    unknown = run_raysft("runs", "rm", "dry", "frist", cwd=folder)
    assert unknown.code == 2
    assert "did you mean runs/first?" in unknown.stderr
    unasked = run_raysft("runs", "rm", "dry", cwd=folder)
    assert unasked.code == 2
    assert "give --yes" in unasked.stderr
    assert (folder / "runs/dry").exists()
    removed = run_raysft("runs", "rm", "dry", "runs/first", "--yes", cwd=folder)
    assert removed.stdout == "removed runs/dry\nremoved runs/first\n"
    assert not any((folder / "runs").iterdir())
    none = run_raysft("runs", cwd=folder)
    assert none.code == 2
    assert "no run in runs" in none.stderr


def test_a_run_that_runs_is_not_removed(run_dir: Path) -> None:
    summary = {"status": "interrupted", "verb": "train"}
    rundir.write_json(run_dir / rundir.SUMMARY, summary)
    with held(run_dir, ignore):
        outcome = run_raysft("runs", "rm", "first", "--yes", cwd=run_dir.parents[1])
    assert outcome.code == 2
    assert "is held by process" in outcome.stderr
    assert (run_dir / rundir.METRICS).exists()


def test_phases_follow_each_other_and_sum_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("raysft.runs.phases.time.monotonic", lambda: now[0])
    phases = Phases()
    for seconds, event in [
        (1, events.Status("starting Ray")),
        (2, events.Status("loading tokenizer x/y")),
        (3, events.Status("starting workers")),
        (4, events.Placed("00")),
        (5, events.Started(0)),
        (6, events.Metrics(0, {"eval_loss": 1.0})),
        (7, events.FirstStep()),
        (8, events.Progress(2, 10, 1.0, "training")),
        (9, events.Progress(3, 20, 2.0, "checkpoint")),
        (10, events.Metrics(3, {"loss": 1.0})),
        (11, events.Progress(3, 20, 3.0, "training")),
        (12, events.Status("writing answers")),
    ]:
        now[0] += seconds
        phases.see(event)
    now[0] += 13
    assert phases.so_far() == {
        "starting": 1, "starting Ray": 2, "loading tokenizer": 3, "starting workers": 4,
        "loading the model": 5, "first evaluation": 6, "first step": 7, "training": 8 + 9 + 12,
        "checkpoint": 10 + 11, "writing answers": 13,
    }  # fmt: skip
    assert begun_by(events.Started(12)) == "first step"


class Mailbox:
    """Keeps what was put into it, and answers nothing."""

    def __init__(self) -> None:
        self.put, self.seen = self, []  # type: ignore[var-annotated]

    def remote(self, event: events.Progress) -> None:
        self.seen.append((event.step, event.doing))


def test_the_driver_is_told_of_steps_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr("raysft.train.mailbox.time.monotonic", lambda: now[0])
    mailbox = Mailbox()
    tick = Ticker(mailbox)
    for step in range(1, 12):
        now[0] += 0.1
        tick(step, 10 * step)
    tick(11, 110, "checkpoint")
    tick(11, 110)
    assert mailbox.seen == [
        (1, "training"), (6, "training"), (11, "training"), (11, "checkpoint"), (11, "training"),
    ]  # fmt: skip


def test_progress_is_in_no_file(tmp_path: Path) -> None:
    """Neither metrics.jsonl nor, but for one in ten seconds, a log that keeps standard output."""
    config = load_config("gpt2-tiny-cpu", ["log.tensorboard=false"])
    with (tmp_path / "log").open("w") as stream:
        emit = job.fan_out(loggers(config, tmp_path), stream)
        for step in range(1, 40):
            emit(events.Progress(step, step, 1.0, "training"))
        emit(events.Metrics(40, {"loss": 1.0}))
    assert shlex.split((tmp_path / "log").read_text().splitlines()[0])[1] == "progress,"
    assert len((tmp_path / "log").read_text().splitlines()) == 2
    assert len((tmp_path / rundir.METRICS).read_text().splitlines()) == 1
