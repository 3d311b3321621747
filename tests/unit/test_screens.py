"""What a person sees in terminals of 60, 80 and 120 columns, and what a figure shows of it.

No line is wider than its terminal and no number is cut. What is stable is written down here.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raysft.cli import data_tables, terminal
from raysft.cli.console import Renderer
from raysft.cli.estimate_tables import renderables
from raysft.cli.live_line import LiveLine
from raysft.cli.metrics_table import MetricsTable
from raysft.cli.runs_table import found_in, print_runs
from raysft.config.load import load_config
from raysft.estimate.report import estimate
from raysft.runs import events, rundir
from raysft.runs.events import Progress, from_wire
from raysft.runs.metrics import METRICS, Metric, duration, short
from raysft.studies.compare import compare
from raysft.studies.results import read_with_study
from raysft.studies.tables import FittedTable, Heading
from raysft.studies.tune.tables import live_table
from raysft.verbs import preference
from raysft.verbs.registry import STUDIES, VERBS

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).parent / "run_of_version_0_1" / "events.jsonl"
LINES = [json.loads(line) for line in RECORDED.read_text().splitlines()]
WIDTHS = pytest.mark.parametrize("width", [60, 80, 120])
AUDIT = next(line for line in LINES if line["event"] == "data")
HISTOGRAM = {"up_to": [16, 2048, 65536], "prompt": [8200, 1, 0], "response": [3, 123456, 7]}


@pytest.fixture
def consoles(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Terminals of a width in place of the real ones; gives what they have shown."""
    made: list[Console] = []

    def of(width: int) -> Any:
        for name in ("stderr", "stdout"):
            made.append(terminal_of(width))
            monkeypatch.setattr(terminal, name, made[-1])
        monkeypatch.setattr("raysft.cli.console.stderr", terminal.stderr)
        monkeypatch.setattr("raysft.cli.show_events.stderr", terminal.stderr)
        monkeypatch.setattr(terminal.fact, "__defaults__", (terminal.stderr,))
        monkeypatch.setattr(terminal.labelled, "__defaults__", ("default", terminal.stderr))
        return lambda: "".join(console.export_text() for console in made)

    return of


def terminal_of(width: int) -> Console:
    return Console(
        width=width, height=40, record=True, force_terminal=True, highlight=False,
        file=open("/dev/null", "w"),
    )  # fmt: skip


def shown(width: int, *parts: Any) -> str:
    console = terminal_of(width)
    for part in parts:
        console.print(part)
    return console.export_text()


def require_whole(text: str, width: int) -> None:
    """No line is wider than the terminal, and no number is cut or broken."""
    for line in text.splitlines():
        assert len(line.rstrip()) <= width, line
        assert not re.search(r" [\d.,]+…", line), line


@WIDTHS
def test_a_training_run(width: int, consoles: Any) -> None:
    text = consoles(width)
    render = Renderer()
    for line in LINES:
        event = from_wire(line)
        assert event is not None
        render(event)
    # The largest numbers that anyone will see.
    huge = {"loss": 123456.789, "eval_loss": 98765.4321, "lr": 2.5e-5, "grad_norm": 1234567.891,
            "tokens_per_second": 12345678.9, "supervised_tokens_per_second": 2345678.9,
            "peak_memory_gib": 1234.56, "time_left_s": 9e5}  # fmt: skip
    render(events.Metrics(99_999, huge))
    render(events.Chosen("ZeRO-1, packs of 8,192 tokens = 22.5 of 80.0 GiB a worker, " * 2))
    render(events.Sample("say " * 60 + "\n\nnow", "one " * 40, "two"))
    render(events.Check("disk", "fail", "there is no room for it " * 5, "free some " * 9))
    require_whole(text(), width)


def test_rows_of_metrics_at_each_width() -> None:
    event = events.Metrics(
        1200,
        {"loss": 1.23456, "eval_loss": 2.5, "lr": 3e-4, "grad_norm": 0.96, "peak_memory_gib": 12.5,
         "tokens_per_second": 12345.0, "supervised_tokens_per_second": 6661.0, "time_left_s": 61},
    )  # fmt: skip
    by_width = {width: list(MetricsTable().lines(event, width)) for width in (60, 80, None)}
    assert by_width[80] == by_width[None] == [
        "[bold]  step    loss held-out     rate grad norm tokens/s superv./s    GiB     left[/]",
        " 1,200  1.2346   2.5000 3.00e-04     0.960   12,345     6,661  12.50     1:01",
    ]  # fmt: skip
    assert by_width[60] == [
        "[dim]in metrics.jsonl, not shown: superv./s, GiB[/]",
        "[bold]  step    loss held-out     rate grad norm tokens/s     left[/]",
        " 1,200  1.2346   2.5000 3.00e-04     0.960   12,345     1:01",
    ]


def test_what_is_left_out_is_said_once_and_a_new_width_has_a_new_heading() -> None:
    table = MetricsTable()
    event = events.Metrics(1, {"loss": 1.0})
    counts = [len(list(table.lines(event, width))) for width in (60, 60, 80, 60)]
    assert counts == [3, 1, 2, 2]


@pytest.mark.parametrize(
    "metric", [metric for metric in METRICS if metric.heading], ids=lambda metric: metric.key
)
def test_a_number_fits_its_column_with_a_blank_before_it(metric: Metric) -> None:
    for power in range(-6, 10):
        for digits in (1.0, 4.44444, 9.99999):
            words = metric.words(digits * 10.0**power)
            assert len(words) < metric.width, words
    assert (short(999_400), short(999_600), short(1.234e6), short(5e9)) == (
        "999,400", "1M", "1.23M", "5G",
    )  # fmt: skip
    assert duration(360_000) == "4d 04h"


def line_at(step: int, total: int, width: int, doing: str = "training") -> str:
    line = LiveLine()
    line.see(events.Plan(total))
    line.see(events.Started(0))
    for at in (step - 2, step):
        line.see(Progress(at, 1000 * at, 0.5 * at, doing))
    return line.text(width, line.arrived).plain


def test_the_live_line_by_hand() -> None:
    """2 steps and 2,000 tokens in a second; 50 seconds have gone."""
    assert line_at(100, 700, 120)[2:] == (
        "training  step 100 of 700  ━━╌╌╌╌╌╌╌╌╌╌  0:50  5:00 left  2,000 tokens/s"
    )
    assert line_at(100, 700, 60)[2:] == "step 100 of 700  0:50  5:00 left  2,000 tokens/s"
    assert line_at(100, 700, 40)[2:] == "step 100 of 700  5:00 left"
    assert "checkpoint  step 100 of 700" in line_at(100, 700, 120, "checkpoint")


@WIDTHS
def test_the_live_line_is_one_line_with_a_blank_at_its_end(width: int) -> None:
    for step, total in ((3, 5), (99_998, 100_000), (7_654_321, 9_999_999)):
        for doing in ("training", "evaluation", "checkpoint"):
            text = line_at(step, total, width, doing)
            assert len(text) < width
            assert f"step {step:,} of {total:,}" in text
    line = LiveLine()
    line.see(events.Status("writing answers to held-out records"))
    assert re.fullmatch(
        r". writing answers to held-out records  0:00", line.text(60, line.since).plain
    )


def test_the_live_line_of_a_search_counts_trials() -> None:
    line = LiveLine()
    line.count("trials ended", 3, 12, "trial 4, trial 5")
    assert line.text(80, line.since).plain[2:] == (
        "trial 4, trial 5  3 of 12 trials ended  ━━━╌╌╌╌╌╌╌╌╌  0:00"
    )


def test_the_live_line_of_a_study_tells_how_long_the_rest_takes() -> None:
    render = Renderer()
    render(events.Status("starting Ray"))
    render(events.Points(15, 3, 2, None))
    assert "measuring  3 of 15 points" in render.line.text(80, time.monotonic()).plain
    render(events.Points(15, 5, 2, 600.0))
    assert "5 of 15 points" in (text := render.line.text(80, time.monotonic()).plain)
    assert "about 10:00 left" in text


def test_a_study_tells_in_a_log_how_far_it_is() -> None:
    with terminal.stderr.capture() as shown:
        render = Renderer()
        for event in (events.Points(15, 3, 2, None), events.Points(15, 5, 2, 600.0)):
            render(event)
    assert shown.get().splitlines() == [
        "  at once        2 of 15 points; 3 were there already",
        "5 of 15 points, about 10:00 left",
    ]


def test_the_live_line_of_a_run_that_starts_again_counts_anew() -> None:
    line = LiveLine()
    line.see(events.Plan(100))
    line.see(Progress(50, 1000, 10.0, "training"))
    line.see(events.Restart("a worker died"))
    assert line.doing == "starting workers again"
    line.see(events.Started(40))
    line.see(Progress(41, 820, 1.0, "training"))
    assert line.rates() is None
    line.see(Progress(43, 860, 2.0, "training"))
    assert line.rates() == (2.0, 40.0)


@WIDTHS
def test_estimates(width: int) -> None:
    for preset, device, changes in (
        ("gpt2-large", "h100", ["scaling.workers=4"]),
        ("gpt2-xl", None, []),
        ("gpt2-tiny-cpu", None, []),
    ):
        facts = estimate(load_config(preset, changes), device=device)
        text = shown(width, *renderables(facts))
        require_whole(text, width)
        assert "Forward and backward, MFLOPs a token" in text


def test_an_estimate_leaves_the_total_in_a_narrow_terminal() -> None:
    facts = estimate(load_config("gpt2-large", ["scaling.workers=4"]), device="h100")
    text = shown(60, *renderables(facts))
    assert "ZeRO-3 O P A                             1.23  4.89  6.12  yes" not in text
    assert re.search(r"^ZeRO-3 O P A .* 6\.12  yes$", text, re.MULTILINE)
    assert "Not shown in 60 columns: other" in text
    assert "Not shown" not in shown(80, *renderables(facts))


@WIDTHS
def test_an_audit(width: int) -> None:
    sources = [{"path": "/a/long/way/" * 9 + "x.jsonl", "weight": 0.5, "format": "alpaca",
                "records": 123_456_789}]  # fmt: skip
    facts = {**AUDIT, "sources": sources, "tokens": 12_345_678_901, "histogram": HISTOGRAM}
    facts |= {"prompt_loss_weight": 0.5, "prompt_loss_share": 0.31}
    console = terminal_of(width)
    data_tables.print_audit(facts, console)
    text = console.export_text()
    require_whole(text, width)
    assert "123,456,789" in text
    assert "123,456" in text.partition("Records by tokens")[2]


@WIDTHS
def test_an_audit_of_pairs_and_how_a_run_of_them_ends(width: int) -> None:
    bins = dict.fromkeys(("prompt", "chosen", "rejected"), HISTOGRAM["response"])
    of_pairs = {"only_length": 1, "both_directions": 2, "with_margin": 3}
    facts = {**AUDIT, "histogram": {"up_to": HISTOGRAM["up_to"], **bins}, "pairs": of_pairs}
    facts["rejected_tokens"] = facts["response_tokens"]
    console = terminal_of(width)
    data_tables.print_audit(facts, console)
    text = console.export_text()
    require_whole(text, width)
    assert text.partition("Records by tokens")[2].count("123,456") == 3
    measured = {"eval_accuracy": 0.5, "eval_reward_margin": 0.0, "eval_logp_chosen": -1234.5}
    summary = {"status": "done", "run_dir": "runs/x", "steps": 3, "measures_first": measured,
               "measures_last": measured | {"eval_accuracy": 0.75}}  # fmt: skip
    text = shown(width, *preference.tables(summary, None))
    require_whole(text, width)
    assert re.search(r"^ *accuracy +0\.5000 +0\.7500 *$", text, re.MULTILINE)
    assert ("held-out pairs, accuracy", "0.5000", "0.7500") in preference.closing(summary)


@WIDTHS
@pytest.mark.parametrize("name", ["tune/asha", "seq-len/preset"])
def test_results_of_studies(width: int, name: str) -> None:
    file, results, study = read_with_study(ROOT / "benchmarks" / name, STUDIES)
    require_whole(shown(width, *study.tables(results)), width)
    console = terminal_of(width)
    compare(study, (file, results), (file, results), 0.1, console)
    require_whole(re.sub(r"^[AB]  .*\n", "", console.export_text()), width)


@WIDTHS
def test_trials_while_they_run(width: int) -> None:
    settings = {
        "optim.lr": 0.00056284,
        "schedule.warmup_ratio": 0.17844,
        "optim.max_grad_norm": 1.5,
    }
    rows = [
        {"number": n, "settings": settings, "status": "diverged", "step": 123_456,
         "total_steps": 999_999, "loss": 12.34567, "score": 11.23456}
        for n in range(1, 120)
    ]  # fmt: skip
    text = shown(width, live_table(rows, 120, 20, "held-out loss", higher=False))
    require_whole(text, width)
    assert len(text.splitlines()) < 32


def make_run(folder: Path, utc: str, **summary: Any) -> None:
    folder.mkdir(parents=True)
    stamp = {"command": "raysft train x", "utc": utc, "version": "0.1.0"}
    rundir.write_json(
        folder / rundir.RUN, {"verb": "train", "config": {"model": {}}, "stamp": stamp}
    )
    if summary:
        rundir.write_json(folder / rundir.SUMMARY, {"verb": "train", **summary})


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    done = {"steps": 123_456, "eval_loss_first": 6.343, "eval_loss_last": 1.029, "wall_s": 94.6,
            "exact_match": 0.25, "tokens_per_second": 8953.0}  # fmt: skip
    make_run(tmp_path / "new", "2026-03-01T10:00:00+00:00", status="done", **done)
    make_run(tmp_path / f"gpt2-tiny-cpu-{'x' * 40}-20260201-100000", "2026-02-01T10:00:00+00:00",
             status="done", **done)  # fmt: skip
    error = "the training loss is nan at step 12: " + "lower optim.lr " * 20 + "\nand more"
    make_run(tmp_path / "bad", "2026-01-01T10:00:00+00:00", status="failed", error=error)
    make_run(tmp_path / "dry", "2026-04-01T10:00:00+00:00")
    return tmp_path


@WIDTHS
def test_runs(width: int, storage: Path, consoles: Any) -> None:
    text = consoles(width)
    print_runs(found_in(storage, planned=False), storage)
    seen = text()
    require_whole(seen.replace(str(storage), ""), width)
    lines = seen.splitlines()
    order = [n for n, line in enumerate(lines) if line.startswith(("bad ", "gpt2-", "new "))]
    assert order == sorted(order)
    assert len(order) == 3
    assert "dry" not in seen.replace(str(storage), "")
    reason = next(line for line in lines if line.startswith("bad: "))
    assert reason.startswith("bad: the training loss is nan at step 12:")
    assert "123,456" in seen


def test_a_table_of_runs_as_it_stands(storage: Path, consoles: Any) -> None:
    text = consoles(60)
    print_runs(found_in(storage, planned=True), storage)
    assert [line.rstrip() for line in text().splitlines() if line.strip()][1:10] == [
        "                             submitted           held-out",
        "run                  status  UTC           steps     last",
        "─────────────────────────────────────────────────────────",
        "bad                  failed  01-01 10:00",
        "gpt2-tiny…201-100000 done    02-01 10:00 123,456    1.029",
        "new                  done    03-01 10:00 123,456    1.029",
        "dry                  planned 04-01 10:00",
        "Not shown in 60 columns: verb, held-out first, exact match,",
        "tokens/s, wall",
    ]


def test_a_table_moves_together_before_it_leaves_columns_out() -> None:
    headings = [Heading("name", "left"), Heading("a", goes=2), Heading("b", goes=1), Heading("c")]
    table = FittedTable(None, headings)
    table.add_row("one", "1.25", "2.25", "3.25")
    assert shown(25, table).splitlines()[2].rstrip() == "one    1.25   2.25   3.25"
    assert shown(19, table).splitlines()[2].rstrip() == "one  1.25 2.25 3.25"
    narrow = shown(18, table).splitlines()
    assert narrow[2:5] == ["one    1.25   3.25", "Not shown in 18 ", "columns: b"]
    assert shown(9, table).splitlines()[2:3] == ["one  3.25"]


@WIDTHS
def test_the_end_of_a_run(width: int) -> None:
    summary = {
        "status": "done", "run_dir": "runs/first", "train_loss_first": 6.36, "train_loss_last": 0.7,
        "eval_loss_first": 6.3, "eval_loss_last": 0.7, "mfu": 0.25, "tokens_seen": 123_456_789_012,
        "export_logit_difference": 1.4e-6, "checkpoint_stall_s": 12.3, "wall_s": 123456,
        "reserved_memory_gib": 71.22,
    }  # fmt: skip
    require_whole(shown(width, *VERBS["train"].tables(summary, None)), width)
