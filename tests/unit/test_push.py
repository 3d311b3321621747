"""A model to the hub: the real client, by real HTTP, to as much of the hub as it asks for."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from raysft.config.load import load_config
from raysft.data import demo
from raysft.data.template import install_template
from raysft.data.turns import Message
from raysft.model.rewards import scores
from raysft.runs import events
from raysft.runs.events import Event
from raysft.verbs.train import describe_and_push
from tests.conftest import run_raysft
from tests.hub_stand_in import TOKEN, serving


@pytest.fixture
def hub() -> Iterator[Any]:
    with serving() as served:
        yield served


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that is done, trained on a file of somebody's home."""
    folder = tmp_path / "home-of-somebody/runs/first"
    tokenizer = demo.train_tokenizer(demo.generate(50))
    template = install_template(tokenizer, "alpaca")
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 256}
    ends = {"bos_token_id": None, "eos_token_id": template.stop_ids}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **ends))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    records = folder.parents[1] / "my records.jsonl"
    config = load_config(
        "gpt2-tiny-cpu",
        [f"data.path={records}", f"model.tokenizer={folder}", "run.name=first", "run.license=mit"],
    )
    facts = {
        "path": str(records), "weight": 1.0, "format": "alpaca", "records": 1234,
    }  # fmt: skip
    spec = {
        "verb": "train",
        "config": config.model_dump(mode="json"),
        "stamp": {"command": f"raysft train x.toml --set 'data.path={records}'", "utc": "now"},
    }
    summary = {
        "status": "done", "steps": 7, "train_loss_first": 6.5, "train_loss_last": 0.25,
        "eval_loss_first": 6.25, "eval_loss_last": 0.5, "exact_match": 0.875,
        "exact_match_records": 200, "num_restarts": 0, "wall_s": 61.0,
        "data": {
            "sources": [facts], "num_read": 1300, "num_dropped": 66, "num_records": 1200,
            "num_eval_records": 34, "template": "alpaca", "end_token": "<|endoftext|>",
            "dropped": {f"the rest of {records} is lost": 66},
        },
        "workers": {
            "world_size": 2,
            "observed": {"cpu": "AMD EPYC", "gpu": None, "python": "3", "versions": {"ray": "2"}},
        },
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(spec))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def export(hub: Any, run_dir: Path, *words: str, token: str = TOKEN) -> Any:
    environment = hub.environment | {"HF_HOME": str(run_dir.parents[2] / "hf"), "HF_TOKEN": token}
    folder = run_dir.parents[1]
    return run_raysft("export", "runs/first", *words, cwd=folder, **environment)


def test_a_run_is_pushed_with_its_card(hub: Any, run_dir: Path) -> None:
    done = export(hub, run_dir, "--push-to-hub", "first-model", "--private")
    assert (done.code, done.stdout) == (0, "runs/first/model\n"), done.stderr
    assert f"{hub.url}/me/first-model" in done.stderr
    assert hub.made == {"me/first-model": "private"}
    there = hub.repos["me/first-model"]
    here = {path.name: path.read_bytes() for path in (run_dir / "model").iterdir()}
    assert there == here
    assert "model.safetensors" in there
    card = there["README.md"].decode()
    for words in (
        "license: mit", "library_name: transformers", "pipeline_tag: text-generation",
        "- raysft", "| my records.jsonl | alpaca | 1,234 |", "66 left out",
        "1,200 trained on, 34 held out", "| template | alpaca |", "6.2500 to 0.5000",
        "87.5% of 200", "2, each on AMD EPYC", 'name = "me/first-model"',
        "raysft train x.toml --set 'data.path=my records.jsonl'",
    ):  # fmt: skip
        assert words in card
    for words in (
        "base_model",
        "datasets",
        "home-of-somebody",
        str(Path.home()) + "/",
        TOKEN,
        "/tmp",
    ):
        assert words not in card
    again = export(hub, run_dir, "--push-to-hub", "me/first-model")
    assert again.code == 0, again.stderr


def test_a_push_that_fails_is_told_in_a_line(hub: Any, run_dir: Path) -> None:
    for name, token, code, told in (
        ("others/x", TOKEN, 1, "does not let you write there; set HF_TOKEN"),
        ("me/x", "hf_other", 1, "does not know you; set HF_TOKEN to a token that may write"),
        ("a/b/c", TOKEN, 2, "'a/b/c' is no name on the hub"),
    ):
        done = export(hub, run_dir, "--push-to-hub", name, token=token)
        assert (done.code, done.stdout) == (code, ""), done.stderr
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not hub.repos


def test_a_failed_push_at_the_end_of_a_run_is_a_warning(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To where nobody answers. The card is written all the same."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    emitted: list[Event] = []
    config = load_config("gpt2-tiny-cpu", ["run.push_to_hub=me/x", "run.push_private=true"])
    assert describe_and_push(config, run_dir, {"steps": 8}, emitted.append) == {"pushed_to": None}
    (warning,) = [event.message for event in emitted if isinstance(event, events.Warning)]
    assert "me/x was not pushed to http://127.0.0.1:9" in warning
    assert warning.endswith(f"raysft export {run_dir} --push-to-hub me/x --private")
    assert "| steps | 8 |" in (run_dir / "model/README.md").read_text()


def test_the_code_of_the_card_runs(run_dir: Path) -> None:
    """As it stands, in the folder, and with the answer of `raysft generate`."""
    config = load_config("gpt2-tiny-cpu", ["run.name=first"])
    assert describe_and_push(config, run_dir, {}, lambda _: None) == {}
    card = (run_dir / "model/README.md").read_text()
    assert "The license is not stated" in card
    assert "### Instruction:\n{instruction}\n\n### Response:\n" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=run_dir / "model", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (count,) = re.findall(r"max_new_tokens=(\d+)", code)
    (question,) = re.findall(r'"content": "(.*?)"', code)
    words = ("generate", "runs/first", question, "--max-new-tokens", count)
    told = run_raysft(*words, cwd=run_dir.parents[1])
    assert done.stdout.strip() == told.stdout.strip()
    assert done.stdout.strip()


def test_the_card_of_a_run_of_dpo(run_dir: Path) -> None:
    set_verb(run_dir, "dpo")
    results = {"measures_first": {"eval_accuracy": 0.5}, "measures_last": {"eval_accuracy": 0.75}}
    config = load_config("gpt2-tiny-cpu", ["run.name=first", "dpo.beta=0.2"])
    describe_and_push(config, run_dir, results, lambda _: None)
    card = (run_dir / "model/README.md").read_text()
    for words in (
        "pipeline_tag: text-generation", "- dpo\n", "of a better and a worse answer by direct",
        "(DPO) with beta 0.2 and the better answer's negative log-likelihood a token times 1.",
        "| held-out pairs told apart | 50.0% to 75.0% |", "loss, a pair | 6.5000 to 0.2500",
        "64 pairs", "AutoModelForCausalLM",
    ):  # fmt: skip
        assert words in card, words


def set_verb(run_dir: Path, verb: str) -> None:
    spec = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps(spec | {"verb": verb}))


@pytest.mark.parametrize("template", ["plain", "alpaca", "chatml"])
def test_the_code_of_a_reward_model_gives_what_raysft_gives(run_dir: Path, template: str) -> None:
    """At the token that ends the answer, after which ChatML writes a line break."""
    set_verb(run_dir, "reward")
    folder = run_dir / "model"
    tokenizer = demo.train_tokenizer(demo.generate(50))
    installed = install_template(tokenizer, template)
    tokenizer.add_special_tokens({"pad_token": "<|padding|>"})
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 256}
    scalar = {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=len(tokenizer), **shape, **scalar))
    shutil.rmtree(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = load_config("gpt2-tiny-cpu", ["run.name=first"])
    assert describe_and_push(config, run_dir, {}, lambda _: None) == {}
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "- reward-model\n" in card
    assert "to give an answer a number, its reward" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked, answered = re.findall(r'"content": "(.*?)"', code)
    turns = [Message("user", asked), Message("assistant", answered)]
    (wanted,) = scores(model.eval(), installed, [turns])
    assert float(done.stdout) == pytest.approx(wanted, abs=1e-5)
