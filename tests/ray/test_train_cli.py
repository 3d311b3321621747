"""`raysft train` as a person runs it: what it prints, leaves behind, and takes up again."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raysft.data import demo
from raysft.runs import snapshot
from raysft.train.profile import PHASES
from tests.conftest import Outcome, run_raysft

SUMMARY_FIELDS = {
    "status", "run_dir", "model_dir", "steps", "num_restarts", "num_records", "num_dropped",
    "tokens_seen", "supervised_tokens_seen", "train_loss_first", "train_loss_last",
    "eval_loss_first", "eval_loss_last", "tokens_per_second", "supervised_tokens_per_second",
    "step_time_p50_s", "step_time_p95_s", "peak_memory_gib", "mfu", "wall_s", "config", "stamp",
}  # fmt: skip
SHORT = (
    "--set", "run.max_steps=20", "--set", "log.every_steps=1", "--set", "eval.every_steps=10",
    "--set", "checkpoint.every_steps=5", "--set", "eval.exact_match_records=50",
)  # fmt: skip
AUTO = (
    "--set", "batch.tokens_per_micro_batch=auto", "--set", "model.activation_checkpointing=auto",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def short_run(folder: Path) -> Outcome:
    """20 steps of the demo on two workers, with a checkpoint every five, some steps profiled."""
    words = ("train", "gpt2-tiny-cpu", "--name", "short", "--json", "--profile", *SHORT)
    return run_raysft(*words, cwd=folder, HOME=str(folder))


def test_it_ends_well_and_learns(short_run: Outcome) -> None:
    assert short_run.code == 0, short_run.stderr
    summary = short_run.summary
    assert summary["status"] == "done"
    assert summary["eval_loss_first"] == pytest.approx(math.log(493), abs=0.4)
    assert summary["eval_loss_last"] < summary["eval_loss_first"] - 1
    assert summary["exact_match"] <= 0.05


@pytest.mark.usefixtures("short_run")
def test_ray_leaves_no_token_in_the_home_folder(folder: Path) -> None:
    assert not (folder / ".ray").exists()


def test_the_summary_has_every_field(short_run: Outcome, folder: Path) -> None:
    summary = short_run.summary
    assert set(summary) >= SUMMARY_FIELDS
    assert json.loads((folder / "runs/short/summary.json").read_text()) == summary
    assert (summary["steps"], summary["num_records"], summary["num_dropped"]) == (20, 8000, 0)
    assert summary["stamp"]["command"].startswith("raysft train gpt2-tiny-cpu --name short")
    assert summary["workers"]["observed"]["versions"]["deepspeed"]


def test_phases_sum_to_the_wall_time(short_run: Outcome) -> None:
    phases = short_run.summary["phases_s"]
    assert sum(phases.values()) == pytest.approx(short_run.summary["wall_s"], abs=1.0)
    expected = {"starting workers", "first evaluation", "training", "evaluation", "checkpoint"}
    assert phases.keys() >= expected | {"export", "writing answers to held-out records"}


def test_it_ends_with_a_report_and_what_to_do_next(short_run: Outcome, folder: Path) -> None:
    report = (folder / "runs/short/report.md").read_text()
    assert report.startswith("# short: done\n\n![")
    assert "answer:" in report
    assert "| checkpoint |" in report
    assert (folder / "runs/short/report.png").stat().st_size > 20_000
    last = short_run.stderr.partition("next:\n")[2].splitlines()
    assert last[0].startswith("  raysft generate runs/short ")
    assert last[1:] == [
        "  raysft export runs/short --to short-model",
        "to show others: runs/short/report.md",
    ]


def test_counted_tokens_are_those_of_the_records(short_run: Outcome) -> None:
    """20 steps of 64 records from one epoch: the tokens of 1,280 different records."""
    import numpy as np

    records = demo.generate(8200)
    tokenizer = demo.train_tokenizer(records)
    held_out = set(np.random.default_rng(0).permutation(8200)[:200].tolist())
    train = [record for index, record in enumerate(records) if index not in held_out]
    seen = [train[i] for i in np.random.default_rng([0, 0]).permutation(8000)[:1280]]
    answers = sum(len(tokenizer(r["output"])["input_ids"]) + 1 for r in seen)
    assert short_run.summary["supervised_tokens_seen"] == answers


def test_metrics_are_one_line_a_log_step(short_run: Outcome, folder: Path) -> None:
    lines = [json.loads(s) for s in (folder / "runs/short/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(21))
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 10, 20]
    assert lines[20]["eval_loss"] == short_run.summary["eval_loss_last"]
    assert lines[20]["loss"] == short_run.summary["train_loss_last"]


def test_a_person_sees_progress_samples_and_a_table(short_run: Outcome) -> None:
    for part in (
        "64 records = packs of at most 2,048 tokens on 2 workers",
        "held-out",
        "instruction",
        "answer",
        "tokens/s",
    ):
        assert part in short_run.stderr
    assert "Traceback" not in short_run.stderr
    assert "Warning" not in short_run.stderr
    assert len(short_run.stderr.splitlines()) < 100


def test_a_profile_tells_where_the_steps_went(short_run: Outcome, folder: Path) -> None:
    """Five steps, of which one ends in a checkpoint."""
    table = short_run.stderr.partition("Where 5 steps went")[2].splitlines()
    rows = [line.split() for line in table if line.rstrip().endswith("%")]
    shares = {first: last for first, *_, last in rows if first != "share"}  # MFU, below
    assert set(shares) == set(PHASES)
    assert sum(float(share[:-1]) for share in shares.values()) == pytest.approx(100, abs=0.5)
    for phase in ("forward", "backward", "communication", "optimizer", "checkpoint"):
        assert float(shares[phase][:-1]) > 0
    trace = (folder / "runs/short/profile/trace.json").read_text()
    assert "raysft backward" in trace


def test_standard_output_is_one_json_line(short_run: Outcome) -> None:
    assert len(short_run.stdout.splitlines()) == 1


def test_tensorboard_has_the_same_numbers(short_run: Outcome, folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "runs/short/tensorboard"))
    board.Reload()
    (*_, last) = board.Scalars("eval_loss")
    assert (last.step, last.value) == (20, pytest.approx(short_run.summary["eval_loss_last"]))


def test_exported_model_has_the_loss_that_was_reported(short_run: Outcome, folder: Path) -> None:
    """Held-out loss computed by transformers from the folder, record by record."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_dir = folder / "runs/short/model"
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    records = demo.generate(8200)
    nll, count = 0.0, 0
    for index in np.random.default_rng(0).permutation(8200)[:200]:
        record = records[index]
        question = record["instruction"] + ("\n" + record["input"] if record["input"] else "")
        prompt = tokenizer(question + "\n")["input_ids"]
        response = [*tokenizer(record["output"])["input_ids"], tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + response])
        with torch.no_grad():
            loss = model(torch.tensor([prompt + response]), labels=labels).loss
        nll += loss.item() * len(response)
        count += len(response)
    assert nll / count == pytest.approx(short_run.summary["eval_loss_last"], abs=1e-4)
    assert short_run.summary["export_logit_difference"] < 1e-3


def test_export_generate_and_runs(short_run: Outcome, folder: Path) -> None:
    assert short_run.code == 0
    exported = run_raysft("export", "runs/short", "--to", "exported", cwd=folder)
    assert (exported.code, exported.stdout) == (0, "exported\n"), exported.stderr
    import torch
    from safetensors.torch import load_file

    ours = load_file(folder / "exported/model.safetensors")
    trained = load_file(folder / "runs/short/model/model.safetensors")
    assert ours.keys() == trained.keys()
    assert all(torch.equal(ours[key], trained[key]) for key in ours)

    by_run = run_raysft("generate", "runs/short", "Sort the words.\nrose fish", cwd=folder)
    by_folder = run_raysft("generate", "exported", "Sort the words.\nrose fish", cwd=folder)
    assert by_run.code == by_folder.code == 0
    assert by_run.stdout == by_folder.stdout

    again = run_raysft("export", "runs/short", cwd=folder)
    assert again.code == 2
    assert "runs/short/model exists" in again.stderr

    listing = run_raysft("runs", cwd=folder)
    assert listing.code == 0
    assert "short" in listing.stdout
    assert "done" in listing.stdout


def test_a_run_directory_is_not_overwritten(short_run: Outcome, folder: Path) -> None:
    assert short_run.code == 0
    outcome = run_raysft("train", "gpt2-tiny-cpu", "--name", "short", cwd=folder)
    assert outcome.code == 2
    assert "runs/short holds a run already" in outcome.stderr


def test_interrupted_and_resumed_is_the_same_run(short_run: Outcome, folder: Path) -> None:
    """Ctrl-C after a checkpoint, then --resume: losses equal those of the run left alone.

    With what that one says left to raysft, which chooses the same on a CPU, and once. The command
    is given twice at once, and again while the run is under way: exactly one trains.
    """
    options = (*SHORT, *AUTO)
    assert short_run.code == 0
    process = started_twice("cut", options, folder)
    again = run_raysft("train", "gpt2-tiny-cpu", "--name", "cut", "--resume", *options, cwd=folder)
    assert again.code == 2
    assert "runs/cut is being written: it is held by process" in again.stderr
    deadline = time.monotonic() + 120
    while not snapshot.checkpoints(folder / "runs/cut"):
        assert time.monotonic() < deadline, "no checkpoint within 120 s"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    chose = "ZeRO-3, packs of 2,048 tokens, no activation checkpointing ="
    assert chose in stderr
    assert "interrupted; go on from the newest checkpoint with" in stderr
    assert "--name cut" in stderr
    assert "--resume" in stderr
    cut = json.loads((folder / "runs/cut/summary.json").read_text())
    assert cut["status"] == "interrupted"
    assert not (folder / "runs/cut/model").exists()

    resumed = run_raysft(
        "train", "gpt2-tiny-cpu", "--name", "cut", "--resume", *options, cwd=folder
    )
    assert resumed.code == 0, resumed.stderr
    assert "resumed" in resumed.stderr
    assert chose not in resumed.stderr
    assert "packs of at most 2,048 tokens" in resumed.stderr
    assert curve(folder / "runs/cut") == curve(folder / "runs/short")


def test_other_records_are_gone_on_with_only_when_told(short_run: Outcome, folder: Path) -> None:
    """A copy of the run, from which other records are to be held out."""
    assert short_run.code == 0
    shutil.copytree(folder / "runs/short", folder / "runs/other")
    command = (
        "train", "gpt2-tiny-cpu", "--name", "other", "--resume", "--json", *SHORT,
        "--set", "eval.max_records=100", "--set", "run.max_steps=21",
    )  # fmt: skip
    summary = (folder / "runs/other/summary.json").read_bytes()
    refused = run_raysft(*command, cwd=folder)
    assert refused.code == 2
    assert refused.stderr.count("error:") == 1
    assert (folder / "runs/other/summary.json").read_bytes() == summary
    assert "training records: '8,000 (" in refused.stderr
    assert "held-out records: '200 (" in refused.stderr
    assert "--accept-changes" in refused.stderr
    accepted = run_raysft(*command, "--accept-changes", cwd=folder)
    assert accepted.code == 0, accepted.stderr
    assert accepted.stderr.count("accepted by --accept-changes:") == 2
    assert accepted.summary["steps"] == 21
    assert len(accepted.summary["accepted_changes"]) == 2


def started_twice(name: str, options: tuple[str, ...], folder: Path) -> "subprocess.Popen[str]":
    """The one of two commands that trains; the other was refused."""
    command = [Path(sys.executable).parent / "raysft", "train", "gpt2-tiny-cpu", "--name", name]
    both = [
        subprocess.Popen([*command, *options], cwd=folder, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    deadline = time.monotonic() + 60
    while all(process.poll() is None for process in both):
        assert time.monotonic() < deadline, "none was refused within 60 s"
        time.sleep(0.1)
    refused, trains = sorted(both, key=lambda process: process.poll() is None)
    assert trains.poll() is None
    assert refused.returncode == 2
    assert f"runs/{name} is being written: it is held by process" in refused.communicate()[1]
    return trains


def curve(run_dir: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "grad_norm", "lr", "eval_loss")
    return [tuple(line.get(key, -1) for key in keys) for line in lines]
