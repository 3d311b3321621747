"""Every command of README.md and docs/ runs."""

import json
import shlex
from pathlib import Path

from raysft.config.load import load_config
from raysft.config.schema import DEMO
from tests import documented
from tests.conftest import run_raysft

BRIEF = (
    "bench.seq_lens=[48, 64]",
    "bench.steps=1",
    "bench.warmup_steps=1",
    "batch.global_batch_size=1",
)
STUDIES = (
    "bench.seq_lens=[32, 64]",
    "bench.examples=4",
    "bench.seeds=1",
    "batch.global_batch_size=2",
    "bench.prompt_loss_weights=[0.0, 1.0]",
    "bench.data_sizes=[8, 16]",
    "eval.max_records=4",
    "eval.exact_match_records=4",
    "run.max_steps=2",
    "schedule.warmup_steps=1",
)
POSITIONS = 128  # of the small model that stands for the user's own
SHORT = ("run.max_steps=10", "eval.every_steps=5", "scaling.workers=1")


def settings(some: tuple[str, ...]) -> list[str]:
    return [word for setting in some for word in ("--set", setting)]


def in_brief(words: list[str], folder: Path) -> list[str]:
    """What is added to a line, so that it takes seconds and needs neither a GPU nor the network.

    Training on data of one's own, or on a GPU, is planned only, and so is going on with a run, or
    starting it again.
    """
    match words:
        case ["train" | "reward" | "dpo" | "ppo" | "pairs", config, *_]:
            again = "--resume" in words or config.startswith("runs/")
            extra = ["--dry-run"] if again else []
            typed = documented.overrides(words)
            if words[0] == "train" and not any(one.startswith("run.max_steps") for one in typed):
                extra = [*extra, *settings(("run.max_steps=20",))]
        case ["tune", config, *_] if config != "report":
            extra = settings(SHORT)
        case ["bench", "seq-len", config, *_]:
            extra = settings(BRIEF)
        case ["bench", "grad-variance" | "masking" | "data-size", config, *_]:
            extra = settings(STUDIES)
        case _:
            return []
    file = folder / config
    resolved = load_config(str(file) if file.exists() else config, documented.overrides(words))
    if resolved.model.path == "./my-model":
        extra = [*extra, "--set", f"batch.seq_len={POSITIONS}"]
    if resolved.on_gpu or resolved.data.path != DEMO:
        extra = [*extra, "--dry-run"]
    return extra


def test_commands_run(tiny_model: Path, tmp_path: Path, running_ray: dict[str, str]) -> None:
    """As written, in their order, in one folder with the files that they name."""
    for name in ("my-model", "my-tokenizer"):
        (tmp_path / name).symlink_to(tiny_model)
    (tmp_path / "records.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    for block in documented.blocks("toml"):
        if block.file_name:
            (tmp_path / block.file_name).write_text(block.text)
    (tmp_path / "questions.jsonl").write_text(json.dumps({"prompt": "Sort the words.\na b"}) + "\n")
    # On a cluster: test_two_hosts.py; to the hub: unit/test_push.py
    elsewhere = {"--address", "--push-to-hub"}
    found = [words for words in documented.commands("raysft") if not elsewhere & set(words)]
    assert len(found) >= 6
    for words in found:
        env = {} if words[0] == "doctor" else running_ray  # which looks at a Ray of its own
        outcome = run_raysft(*words, *in_brief(words, tmp_path), cwd=tmp_path, **env)
        assert outcome.code == 0, f"raysft {shlex.join(words)}: {outcome.stderr}"
        assert outcome.stdout.strip() or words[0] == "chat" or "--prompts" in words
