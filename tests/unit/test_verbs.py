"""Every verb fills every field of its value, and each of them does what it says."""

import dataclasses
import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.runs import rundir, snapshot
from raysft.studies import results as study_results
from raysft.verbs import plan
from raysft.verbs.registry import STUDIES, VERBS
from raysft.verbs.resume import admit
from raysft.verbs.settle import dated
from raysft.verbs.verb import Verb

PRESETS = {
    "train": "gpt2-tiny-cpu",
    "pairs": "dpo-demo",
    "reward": "reward-demo",
    "dpo": "dpo-demo",
    "ppo": "ppo-demo",
    "align": "align-demo",
    "tune": "tune-stability",
    "bench seq-len": "bench-seq-len",
    "bench grad-variance": "bench-grad-variance",
    "bench masking": "bench-masking",
    "bench data-size": "bench-data-size",
    "bench stability": "bench-stability",
    "bench over-optimization": "bench-over-optimization",
}
COMMITTED = {
    "tune": Path("benchmarks/tune/asha/results.json"),
    "bench seq-len": Path("benchmarks/seq-len/preset/results.json"),
    "bench grad-variance": Path("benchmarks/grad-variance/preset/results.json"),
    "bench masking": Path("benchmarks/masking/preset/results.json"),
    "bench data-size": Path("benchmarks/data-size/preset/results.json"),
    "bench stability": Path("benchmarks/stability/eight-rates/results.json"),
    "bench over-optimization": Path("benchmarks/over-optimization/hundred-steps/results.json"),
}
ROOT = Path(__file__).parents[2]
PUBLISHED = sorted(
    file.relative_to(ROOT)
    for file in (ROOT / "benchmarks").glob("*/*/results.json")
    if (file.parent / rundir.REPORT).exists()
)
EACH = pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))


def summary(verb: Verb, status: str) -> dict[str, Any]:
    """What any of them could have in its summary."""
    return {
        "verb": verb.name, "status": status, "run_dir": "runs/x", "resumable": True, "steps": 3,
        "eval_loss_first": 6.0, "eval_loss_last": 1.5, "model_dir": "runs/x/model",
        "train_loss_first": 6.0, "train_loss_last": 1.0, "wall_s": 61, "verdict": "It costs.",
        "report": "runs/x/report.md", "best": 2, "eval_loss": 1.5, "best_config": "x/best.toml",
        "measures_first": {"eval_accuracy": 0.5}, "measures_last": {"eval_accuracy": 0.75},
        "checks": [{"status": "pass"}, {"status": "warn"}],
        "stamp": {"command": f"raysft {verb.name} x"},
    }  # fmt: skip


@EACH
def test_every_field_is_filled(verb: Verb) -> None:
    assert VERBS[verb.name] is verb
    optional = {"check_resume", "study", "write_report"}
    for field in dataclasses.fields(verb):
        value = getattr(verb, field.name)
        assert value is not None or field.name in optional, field.name
        assert not isinstance(value, str) or value, field.name
        assert isinstance(value, str | bool) or value is None or callable(value) or (
            field.name == "study" and value.name in STUDIES
        ), field.name  # fmt: skip


@EACH
def test_it_plans_and_has_last_words(verb: Verb) -> None:
    rows = verb.plan(load_config(PRESETS.get(verb.name, "gpt2-tiny-cpu")))
    assert bool(rows) == verb.is_a_run
    assert all(name and words for name, words in rows)
    assert verb.done(summary(verb, "done"))
    assert verb.interrupted(summary(verb, "interrupted")).startswith("interrupted")
    assert verb.interrupted(summary(verb, "interrupted") | {"resumable": False})


@EACH
def test_its_tables_are_those_of_its_results(verb: Verb) -> None:
    found = None
    if verb.study is not None:
        _, found, study = study_results.read_with_study(ROOT / COMMITTED[verb.name], STUDIES)
        assert study is verb.study
        assert verb.study.verdict(found).endswith(".")
        points = verb.study.points(found)
        assert len({point.label for point in points}) == len(points) > 1
    tables = list(verb.tables(summary(verb, "done"), found))
    assert bool(tables) == verb.is_a_run


@EACH
def test_its_tables_cut_no_number(verb: Verb) -> None:
    """Whatever stands in 40 to 120 columns stands in a terminal that has room for all."""
    found = None
    if verb.study is not None:
        _, found, _ = study_results.read_with_study(ROOT / COMMITTED[verb.name], STUDIES)

    def written(width: int) -> list[str]:
        console = Console(width=width, file=io.StringIO(), force_terminal=True, record=True)
        for table in verb.tables(summary(verb, "done"), found):
            console.print(table)
        return [line for line in console.export_text().splitlines() if " columns: " not in line]

    words = set(" ".join(written(500)).split())
    for width in (40, 60, 80, 100, 120):
        lines = written(width)
        assert all(len(line.rstrip()) <= width for line in lines), width
        numbers = {word for word in " ".join(lines).split() if word[-1].isdigit()}
        assert numbers <= words, (width, numbers - words)


@EACH
def test_it_is_admitted_to_an_empty_folder_only(verb: Verb, tmp_path: Path) -> None:
    config = load_config(PRESETS.get(verb.name, "gpt2-tiny-cpu"))
    assert admit(verb, tmp_path, config, resume=False) == []
    assert not verb.has_left(tmp_path)
    if verb.check_resume is not None:
        with pytest.raises(UserError):
            admit(verb, tmp_path, config, resume=True)
    (tmp_path / rundir.METRICS).touch()
    with pytest.raises(UserError, match="holds a run already") as refused:
        admit(verb, tmp_path, config, resume=False)
    assert "--resume" not in str(refused.value)
    if verb.check_resume is None:
        return
    # What ended before it left anything is told in the same words, whatever is typed.
    assert rundir.NOTHING_LEFT in str(refused.value)
    rundir.write_json(tmp_path / rundir.RUN, {"config": config.model_dump(mode="json")})
    with pytest.raises(UserError, match=rundir.NOTHING_LEFT):
        admit(verb, tmp_path, config, resume=True)
    assert rundir.NOTHING_LEFT in verb.interrupted({"run_dir": str(tmp_path), "resumable": False})
    leave_something(tmp_path)
    with pytest.raises(UserError, match="go on with it by --resume"):
        admit(verb, tmp_path, config, resume=False)


def leave_something(run_dir: Path) -> None:
    """As much of a checkpoint, of a search's results and of a chain's stage as is looked for."""
    (run_dir / "sft").mkdir()
    rundir.write_json(run_dir / "sft" / rundir.SUMMARY, {"status": "done"})
    (run_dir / rundir.CHECKPOINTS).mkdir()
    results = [{"checkpoint_dir_name": "checkpoint_1", "metrics": {"step": 1}}]
    rundir.write_json(run_dir / rundir.CHECKPOINTS / snapshot.FILE, {snapshot.RESULTS: results})
    rundir.write_json(run_dir / rundir.RESULTS, {})


@pytest.mark.parametrize("file", PUBLISHED, ids=[str(file.parent) for file in PUBLISHED])
def test_published_reports_are_drawn_again_as_they_are(file: Path, tmp_path: Path) -> None:
    """From the results.json beside them, which a version before has written."""
    _, found, study = study_results.read_with_study(ROOT / file, STUDIES)
    study.write_report(found, tmp_path)
    published = (ROOT / file).parent / rundir.REPORT
    assert (tmp_path / rundir.REPORT).read_text() == published.read_text()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"study": "bread"}', "unknown study 'bread': this raysft knows tune, seq-len"),
        ('{"study": "seq-len", "cases": []}', "holds no results of seq-len, or is damaged"),
        ('{"study": "seq-len", "cases": [{}]}', "holds no results of seq-len, or is damaged"),
        ('{"study": "tune", "trials": 3}', "holds no results of tune, or is damaged"),
        ('{"study": "tune"}', "holds no results of tune, or is damaged"),
    ],
)
def test_results_that_are_none_are_told(content: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"stamp": {}, "config": {}, **json.loads(content)}))
    with pytest.raises(UserError, match=told):
        study_results.read_with_study(file, STUDIES)


@pytest.mark.parametrize(
    ("overrides", "steps", "records", "part"),
    [
        (
            ["schedule.warmup_steps=20"],
            10,
            99,
            "is longer than the run of 10: its rate ends",
        ),
        (
            ["optim.lr=1e-3"],
            1,
            99,
            "trains at the floor of the rate, 0.0001 = 0.1 x 0.001",
        ),
        (
            ["batch.global_batch_size=64"],
            9,
            30,
            "64 is more than the 30 training records",
        ),
    ],
)
def test_what_few_would_want_is_said(
    overrides: list[str], steps: int, records: int, part: str
) -> None:
    settings = ["batch.global_batch_size=8", "schedule.warmup_steps=none", *overrides]
    (told,) = plan.cautions(load_config("gpt2-tiny-cpu", settings), steps, records)
    assert part in told


@pytest.mark.parametrize("overrides", [["schedule.warmup_steps=1"], ["schedule.min_lr_ratio=1.0"]])
def test_one_step_at_the_whole_rate_is_nothing_to_say(overrides: list[str]) -> None:
    config = load_config("gpt2-tiny-cpu", ["schedule.warmup_steps=none", *overrides])
    assert plan.cautions(config, 1, config.batch.global_batch_size) == []


def test_a_run_keeps_the_day_of_its_first_start(tmp_path: Path) -> None:
    """A template may write it: "data" is fixed for a run that goes on, and so are its prompts."""
    config = load_config("gpt2-tiny-cpu", [])
    first = dated(config, tmp_path, resume=False)
    assert first.data.date == date.today().isoformat()
    assert dated(config, tmp_path / "elsewhere", resume=True).data.date is None
    (tmp_path / "run.json").write_text(json.dumps({"config": {"data": {"date": "2024-02-29"}}}))
    assert dated(config, tmp_path, resume=True).data.date == "2024-02-29"
    (tmp_path / "run.json").write_text(json.dumps({"config": {"data": {}}}))  # of an older version
    assert dated(config, tmp_path, resume=True).data.date is None
    asked = load_config("gpt2-tiny-cpu", ["data.date=2020-01-01"])
    assert dated(asked, tmp_path, resume=False).data.date == "2020-01-01"
    with pytest.raises(UserError, match="'yesterday' is no day such as 2026-01-31"):
        load_config("gpt2-tiny-cpu", ["data.date=yesterday"])
