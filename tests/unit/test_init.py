"""`raysft init`: a config for a model, records and machine, without starting anything."""

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.verbs import init
from raysft.verbs.init import Answers, Found, begin, of_data
from raysft.verbs.machine import SMALL, Machine, attempts, fitted
from tests.conftest import run_raysft

CPU = Machine(cpus=8, memory_gib=64, gpus=0, gpu="", gpu_gib=0.0, bf16=False)
GPUS = CPU._replace(gpus=2, gpu="NVIDIA H100", gpu_gib=79.6, bf16=True)
OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # where nothing answers


@pytest.fixture
def here(own_files: Path) -> Path:
    return own_files


GIVEN = ("--model", "./my-model", "--data", "records.jsonl")


def test_a_config_for_a_folder_and_a_file(here: Path) -> None:
    outcome = run_raysft("init", "my.toml", *GIVEN, cwd=here, **OFFLINE)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout == "raysft data preview my.toml\nraysft train my.toml\n"
    assert "600 records (prompt_completion); 99 % have at most" in outcome.stderr
    text = (here / "my.toml").read_text()
    assert max(map(len, text.splitlines())) <= 100
    config = load_config(str(here / "my.toml"))
    assert (config.model.path, config.data.path) == ("./my-model", "records.jsonl")
    assert config.run.storage == "runs"
    assert config.batch.seq_len == 256, "the shortest of its lengths that holds 200 bytes and more"
    assert config.left_open == ()
    assert config.scaling.cpus_per_worker == len(os.sched_getaffinity(0))
    assert config.on_gpu is False
    for command in outcome.stdout.splitlines():
        extra = ["--dry-run"] if " train " in command else []
        assert run_raysft(*command.split()[1:], *extra, cwd=here).code == 0


def test_nothing_is_overwritten_and_nothing_is_left_of_a_mistake(here: Path) -> None:
    before = sorted(here.iterdir())
    mistakes = {
        ("--model", "./no-model", "--data", "records.jsonl"): "there is no folder ./no-model",
        ("--model", "./my-model", "--data", "no.jsonl"): "there is no file no.jsonl",
        ("--model", "acme/none", "--data", "records.jsonl"): "does not answer",
        ("--model", "./my-model", "--data", "acme/none"): "does not answer",
        ("--model", "./my-model"): "--data is needed",
        ("--model", "scratch", "--data", "records.jsonl"): "--tokenizer is needed",
        ("raysft.txt", *GIVEN): "must end in .toml",
    }
    for words, message in mistakes.items():
        outcome = run_raysft("init", *words, cwd=here, **OFFLINE)
        assert outcome.code == 2, words
        assert message in outcome.stderr
        assert "Traceback" not in outcome.stderr
    assert sorted(here.iterdir()) == before
    (here / "raysft.toml").write_text("mine")
    again = run_raysft("init", *GIVEN, cwd=here)
    assert (again.code, (here / "raysft.toml").read_text()) == (2, "mine")
    assert "is there already" in again.stderr


def test_from_scratch_on_the_demo_and_on_records_of_ones_own(here: Path) -> None:
    demo = run_raysft("init", "demo.toml", "--model", "scratch", "--data", "demo", cwd=here)
    assert demo.code == 0, demo.stderr
    config = load_config(str(here / "demo.toml"))
    assert (config.model.init, config.model.tokenizer) == ("scratch", "demo")
    given = ("--model", "scratch", "--data", "records.jsonl", "--tokenizer", "my-model")
    own = run_raysft("init", "own.toml", *given, "--storage", "elsewhere", cwd=here)
    assert own.code == 0, own.stderr
    config = load_config(str(here / "own.toml"))
    assert (config.model.tokenizer, config.run.storage) == ("my-model", "elsewhere")
    assert config.optim.lr == 1e-3


def test_it_asks_in_a_terminal_and_asks_again_after_a_mistake(here: Path) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [Path(sys.executable).parent / "raysft", "init", "asked.toml"],
        cwd=here, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.write(controller, b"./no-model\n./my-model\nrecords.jsonl\n\n")
    out, err = process.communicate(timeout=120)
    os.close(controller)
    os.close(terminal)
    assert process.returncode == 0, err
    assert err.count("Model (a folder, a hub id, or scratch)") == 2
    assert "Folder for runs [runs]" in err
    assert out.endswith("raysft train asked.toml\n")
    assert load_config(str(here / "asked.toml")).data.path == "records.jsonl"


def test_a_model_without_a_tokenizer_of_its_own_takes_one(here: Path) -> None:
    (here / "my-tokenizer").mkdir()
    for file in (here / "my-model").glob("tokenizer*"):
        shutil.move(file, here / "my-tokenizer" / file.name)
    alone = run_raysft("init", "my.toml", *GIVEN, cwd=here, **OFFLINE)
    assert alone.code == 2
    assert "Give --tokenizer" in " ".join(alone.stderr.split())
    both = run_raysft("init", "my.toml", *GIVEN, "--tokenizer", "./my-tokenizer", cwd=here)
    assert both.code == 0, both.stderr
    assert load_config(str(here / "my.toml")).model.tokenizer == "./my-tokenizer"


def test_a_bad_record_is_told_and_the_file_is_written(here: Path) -> None:
    with (here / "records.jsonl").open("a") as file:
        file.write("{broken\n")
    outcome = run_raysft("init", "my.toml", *GIVEN, cwd=here)
    assert outcome.code == 0
    assert "records.jsonl line 601" in outcome.stderr
    assert 'data.on_bad_record = "skip"' in outcome.stderr


# What fits


def raw_for(machine: Machine, here: Path) -> dict[str, Any]:
    model = str(here / "my-model")
    return init.first_raw(Answers(model, str(here / "records.jsonl"), "runs"), machine)


def gpt2(layers: int, width: int) -> Any:
    from transformers import GPT2Config

    return GPT2Config(n_layer=layers, n_embd=width, n_head=16)


def test_each_gpu_gets_a_worker_and_its_share_of_the_cpus(here: Path) -> None:
    raw, _, warnings = fitted(raw_for(GPUS, here), gpt2(36, 1280), GPUS)
    assert raw["scaling"] == {"workers": 2, "cpus_per_worker": 4, "gpus_per_worker": 1}
    assert raw["engine"] == {"zero_stage": 1, "precision": "bf16"}
    assert raw["model"]["activation_checkpointing"] is False
    assert not warnings


def test_what_memory_asks_for_is_done_and_told(here: Path) -> None:
    """GPT-2 XL: on a GPU of 12 GiB its optimizer states do not fit, on one of 2 nothing does."""
    for gib, offloaded, told in ((79.6, False, 0), (12.0, True, 0), (2.0, True, 1)):
        machine = GPUS._replace(gpus=1, gpu_gib=gib)
        raw, why, warnings = fitted(raw_for(machine, here), gpt2(48, 1600), machine)
        assert raw["engine"].get("offload_optimizer", False) is offloaded, why
        assert len(warnings) == told
    assert "may not fit" in warnings[0]
    old = GPUS._replace(bf16=False)
    assert [attempt["engine.precision"] for attempt in attempts(old)] == ["fp16"] * 3


def test_a_cpu_takes_what_it_is_faster_in_as_long_as_that_fits(here: Path) -> None:
    for gib, precision in ((64, "fp32"), (7, "bf16")):
        machine = CPU._replace(memory_gib=gib)
        raw, _, _ = fitted(raw_for(machine, here), gpt2(12, 1280), machine)
        assert raw["engine"]["precision"] == precision
    raw, _, _ = fitted(raw_for(CPU, here), gpt2(12, 1280), CPU._replace(bf16=True))
    assert raw["engine"]["precision"] == "bf16"


def test_a_model_of_another_family_is_reckoned_as_a_gpt2_of_its_size(here: Path) -> None:
    from transformers import OlmoConfig

    small = OlmoConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9)
    raw, why, _ = fitted(raw_for(CPU, here), small, CPU)
    assert why.endswith("by a GPT-2 of its size")
    assert raw["engine"]["zero_stage"] == 1
    assert "cpu_kernel" not in raw["optim"], f"it has more than {SMALL:,} parameters"


@pytest.mark.parametrize(
    ("found", "positions", "seq_len", "batch"),
    [
        (Found(1000, False, "text", 300, None), 1024, 512, None),
        (Found(1000, False, "text", 1000, None), 512, 512, None),
        (Found(1000, False, "text", 9000, None), None, 4096, None),
        (Found(1000, False, "text", 700, None), 800, 800, None),
        (Found(45, True, "text", 20, None), 1024, 128, 4),
        (Found(1, True, "text", 20, None), 64, 64, 1),
        (None, 1024, 512, None),
        (None, 256, 256, None),
    ],
)
def test_lengths_and_batches(
    found: Found | None, positions: int | None, seq_len: int, batch: int | None
) -> None:
    values, notes = of_data(found, positions)
    assert values["batch.seq_len"] == seq_len
    assert values.get("batch.global_batch_size") == batch
    assert ("takes no more" in notes["batch.seq_len"]) == bool(found and found.fits > seq_len)


def test_the_text_is_the_config_it_says(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For machines that are not this one."""
    monkeypatch.chdir(here)
    for machine in (CPU, GPUS):
        begun = begin(Answers("./my-model", "records.jsonl", "~/runs"), machine)
        (here / "x.toml").write_text(begun.text)
        config = load_config("x.toml")
        assert config.scaling.most == max(1, machine.gpus)
        assert config.run.storage == str(Path.home() / "runs")
        assert machine.words in begun.text
