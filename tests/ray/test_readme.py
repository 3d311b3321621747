"""Every command of the README runs."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import run_raysft

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line]


BRIEF = (
    "bench.seq_lens=[48, 64]",
    "bench.steps=1",
    "bench.warmup_steps=1",
    "batch.global_batch_size=1",
)


SHORT = ("run.max_steps=10", "eval.every_steps=5", "scaling.workers=1")


def commands(program: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in COMMANDS if line.startswith(program + " ")]


def test_raysft_commands(tiny_model: Path, tmp_path: Path) -> None:
    """As written, in their order; training on your own data, or a GPU, as dry runs, and the
    benchmark and the search in brief."""
    (tmp_path / "my-tokenizer").symlink_to(tiny_model)
    (tmp_path / "records.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    found = [words for words in commands("raysft") if "--address" not in words]  # test_two_hosts.py
    assert len(found) >= 6
    for words in found:
        needs_yours = words[0] == "train" and any("data.path" in word for word in words)
        extra = ["--dry-run"] if needs_yours else []
        if words[0] == "tune" and words[1] != "report":
            extra = [word for setting in SHORT for word in ("--set", setting)]
        if words[:2] == ["bench", "seq-len"]:
            extra = [word for setting in BRIEF for word in ("--set", setting)]
        outcome = run_raysft(*words, *extra, cwd=tmp_path)
        assert outcome.code == 0, f"raysft {shlex.join(words)}: {outcome.stderr}"
        assert outcome.stdout.strip()


@pytest.mark.parametrize("target", commands("make"))
def test_make_targets_exist(target: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *target], cwd=ROOT, check=True, capture_output=True)


def test_what_to_type_without_make_is_what_make_does() -> None:
    """The commands for machines without make are those of the Makefile."""
    plan = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo", "test", "PYTHON=python3"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    flat = " ".join(plan.split()).replace("--quiet --disable-pip-version-check ", "")
    by_hand = [line for line in COMMANDS if line.startswith((".venv", "python3"))]
    assert len(by_hand) == 4
    for line in by_hand:
        assert " ".join(shlex.split(line)) in flat.replace("'", ""), line
