"""The command line where it needs no Ray."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import run_raysft

HEAVY = ("torch", "ray", "transformers", "deepspeed", "numpy", "pydantic")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from raysft.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('loaded:', [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Tune GPT-2-class language models" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_dry_run_writes_run_json_and_prints_plan_and_command(tmp_path: Path) -> None:
    outcome = run_raysft("train", "gpt2-xl", "--dry-run", "--name", "x", cwd=tmp_path)
    assert outcome.code == 0
    assert outcome.stdout == "python -m raysft.job runs/x/run.json\n"
    assert "  data           tatsu-lab/alpaca; held out: 0.05 of the records\n" in outcome.stderr
    assert "  tokenizer      openai-community/gpt2-xl, template alpaca\n" in outcome.stderr
    assert "64 records = packs of as many tokens as fit (auto) on 1 worker" in outcome.stderr
    spec = json.loads((tmp_path / "runs/x/run.json").read_text())
    assert spec["verb"] == "train"
    assert spec["config"]["engine"]["zero_stage"] == "auto"
    assert spec["config"]["run"]["name"] == "x"
    assert spec["config"]["model"]["shape"]["n_layer"] == 48
    assert spec["stamp"]["command"] == "raysft train gpt2-xl --dry-run --name x"


def test_an_old_spelling_is_told_with_the_new_one(tmp_path: Path) -> None:
    asked = ("train", "gpt2-tiny-cpu", "--name", "a", "--dry-run")
    done = run_raysft(*asked, "--set", "data.mask_prompt=false", cwd=tmp_path)
    assert done.code == 0
    assert "write data.prompt_loss_weight = 1" in done.stderr
    data = json.loads((tmp_path / "runs/a/run.json").read_text())["config"]["data"]
    assert data["prompt_loss_weight"] == 1
    assert "mask_prompt" not in data


def test_changes_are_accepted_of_a_run_that_goes_on_only(tmp_path: Path) -> None:
    outcome = run_raysft("train", "gpt2-tiny-cpu", "--accept-changes", cwd=tmp_path)
    assert outcome.code == 2
    assert "give it with --resume" in outcome.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_without_a_name_is_named_after_config_and_time(tmp_path: Path) -> None:
    config = tmp_path / "my set.toml"
    config.write_text('[model]\npath = "somewhere/some-model"\n[data]\npath = "demo"\n')
    outcome = run_raysft("train", config, "--dry-run", cwd=tmp_path)
    assert outcome.code == 0
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith("my-set-20")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/a", "-x", "x" * 101, "a b", "a\nb"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(tmp_path: Path, name: str) -> None:
    outcome = run_raysft("train", "gpt2-tiny-cpu", f"--name={name}", "--dry-run", cwd=tmp_path)
    assert outcome.code == 2
    assert "is no name for a run" in " ".join(outcome.stderr.split())
    assert not any(tmp_path.iterdir())


def test_unwritable_storage_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    outcome = run_raysft("train", "gpt2-tiny-cpu", "--name", "x", cwd=tmp_path)
    assert outcome.code == 2
    assert "run.storage: runs cannot be written: runs is a file" in outcome.stderr


def test_version(tmp_path: Path) -> None:
    assert run_raysft("--version", cwd=tmp_path).stdout == "raysft 0.1.0\n"
