"""Every command of README.md and docs/ runs."""

import json
import shlex
from pathlib import Path

import pytest

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
    "bench.lrs=[1e-3, 1e-2]",
    "bench.warmup_ratios=[0.0]",
    "bench.max_grad_norms=[1.0]",
    'bench.precisions=["fp32"]',
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
        case ["train" | "reward" | "dpo" | "ppo" | "pairs" | "align", config, *_]:
            again = "--resume" in words or config.startswith("runs/")
            extra = ["--dry-run"] if again else []
            typed = documented.overrides(words)
            if words[0] == "train" and not any(one.startswith("run.max_steps") for one in typed):
                extra = [*extra, *settings(("run.max_steps=20",))]
        case ["tune", config, *_] if config != "report":
            extra = settings(SHORT)
        case ["bench", "seq-len", config, *_]:
            extra = settings(BRIEF)
        case ["bench", "grad-variance" | "masking" | "data-size" | "stability", config, *_]:
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


# On a cluster: test_two_hosts.py; to the hub: unit/test_push.py
ELSEWHERE = {"--address", "--push-to-hub"}
COMMANDS = [words for words in documented.commands("raysft") if not ELSEWHERE & set(words)]
assert len(COMMANDS) >= 6


@pytest.fixture(scope="module")
def here(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("my-model", "my-tokenizer"):
        (folder / name).symlink_to(tiny_model)
    (folder / "records.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    (folder / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    leave_a_chain(folder / "runs", tiny_model)
    for block in documented.blocks("toml"):
        if block.file_name:
            (folder / block.file_name).write_text(block.text)
    (folder / "questions.jsonl").write_text(json.dumps({"prompt": "Sort the words.\na b"}) + "\n")
    return folder


def leave_a_chain(runs: Path, model: Path) -> None:
    """As much of what `make demo-align` leaves as the presets of its parts look for."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    for name in ("careless", "aligned/sft", "aligned/pairs"):
        (runs / name).mkdir(parents=True)
    (runs / "careless/tokenizer").symlink_to(model)
    record = {"instruction": "a", "input": "", "output": "b"}
    (runs / "careless/careless.jsonl").write_text(json.dumps(record) + "\n")
    (runs / "aligned/sft/model").symlink_to(model)
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    (runs / "aligned/pairs/pairs.jsonl").write_text(json.dumps(pair) + "\n")
    config = GPT2Config.from_pretrained(model, num_labels=1)
    GPT2ForSequenceClassification(config).save_pretrained(runs / "aligned/reward")


@pytest.mark.parametrize("words", COMMANDS, ids=shlex.join)
def test_a_command_runs(words: list[str], here: Path, running_ray: dict[str, str]) -> None:
    """As written, after those that stand before it: all of them need to be run."""
    env = {} if words[0] == "doctor" else running_ray  # which looks at a Ray of its own
    env = {**env, "WANDB_MODE": "offline"}
    outcome = run_raysft(*words, *in_brief(words, here), cwd=here, **env)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.strip() or words[0] == "chat" or "--prompts" in words
