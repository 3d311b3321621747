"""`raysft data`, and tokenising on a cluster."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysft.config.load import load_config
from raysft.data import dataset
from raysft.data.cache import TokenisedSet
from raysft.data.dataset import TokenDataset, select, tokenised_set
from raysft.model.load import load_template
from tests.conftest import Outcome, run_raysft


def data_command(verb: str, tokenizer: Path, path: Path | str, *words: str) -> Outcome:
    sets = ("--set", f"data.path={path}", "--set", f"model.tokenizer={tokenizer}")
    return run_raysft("data", verb, "gpt2-tiny-cpu", *sets, *words, cwd=tokenizer.parent)


@pytest.fixture
def seeded(tmp_path: Path) -> Path:
    """200 sound records, and one of each defect."""
    records: list[Any] = [{"prompt": f"Add {i}.", "completion": f"{i + 1}"} for i in range(200)]
    records += [
        [1],
        {"prompt": "q"},
        {"prompt": "q", "completion": ""},
        {"prompt": "long", "completion": "very " * 600},
        {"prompt": "long " * 600, "completion": "no"},
        records[0],
        {"prompt": "what is <|endoftext|>", "completion": "the end"},
        {"prompt": " ", "completion": "blank"},
    ]
    path = tmp_path / "seeded.jsonl"
    lines = [json.dumps(record) for record in records]
    path.write_text("\n".join([*lines[:50], "{broken", *lines[50:]]) + "\n")
    return path


def test_stats_find_every_defect(tiny_model: Path, seeded: Path) -> None:
    outcome = data_command("stats", tiny_model, seeded, "--json")
    assert outcome.code == 0, outcome.stderr
    facts = outcome.summary
    assert len(outcome.stdout.splitlines()) == 1
    assert facts["num_read"] == 209
    assert facts["num_dropped"] == sum(facts["dropped"].values()) == 4
    counts = {finding["name"]: finding["records"] for finding in facts["findings"]}
    expected = {"responses_truncated", "prompts_truncated", "end_token_missing", "duplicates"}
    assert set(counts) == expected | {"dropped", "special_in_text", "blank_prompt"}
    assert set(counts.values()) == {1}
    warnings = [line for line in outcome.stderr.splitlines() if line.startswith("warning:")]
    assert len(warnings) == len(facts["findings"])
    assert all("What to do:" in line for line in warnings)
    assert f"{seeded} line 51" in outcome.stderr


def test_stats_of_the_demo_are_tables_without_a_warning(tmp_path: Path) -> None:
    outcome = run_raysft("data", "stats", "gpt2-tiny-cpu", cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr
    for part in ("Records", "L_Q", "L_A", "If batch.seq_len were", "packed", "█"):
        assert part in outcome.stdout
    assert "warning" not in outcome.stderr
    assert max(map(len, outcome.stdout.splitlines())) <= 120


def test_preview_tells_kinds_of_tokens_by_mark(tiny_model: Path, seeded: Path) -> None:
    sets = ("--set", "batch.seq_len=8", "--set", "data.template=chatml", "-n", "1")
    outcome = data_command("preview", tiny_model, seeded, *sets)
    assert outcome.code == 0, outcome.stderr
    first, *rest = outcome.stdout.strip().splitlines()
    assert first.startswith(f"{seeded} line 1, prompt_completion: ")
    assert [mark for mark, _ in groupby(line[:3] for line in rest)] == ["x |", "  |", "+ |"]
    assert "[[<|im_start|>]]" in outcome.stdout
    assert rest[-1].endswith("|[[<|im_end|>]]|")
    assert "Margin:" in outcome.stderr


def test_preview_and_stats_of_preference_pairs(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    pairs = [{"prompt": f"q{i}", "chosen": "apple leaf", "rejected": "b"} for i in range(20)]
    pairs[1] = {"prompt": "q0", "chosen": "b", "rejected": "apple leaf"}
    path.write_text(json.dumps(pairs))
    outcome = data_command("preview", tiny_model, path)
    assert outcome.code == 0
    assert "record 1, chosen, preference:" in outcome.stdout
    assert "record 1, rejected, preference:" in outcome.stdout
    outcome = data_command("stats", tiny_model, path, "--json")
    assert outcome.summary["pairs"]["both_directions"] == 2
    assert outcome.summary["pairs"]["chosen_longer"] == 0.95
    assert "pairs in both directions" in outcome.stderr


@pytest.mark.usefixtures("cluster")
def test_a_cluster_tokenises_as_one_process_does(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.jsonl"
    lines = [json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) for i in range(5500)]
    path.write_text("\n".join([*lines[:3210], "[]", *lines[3210:]]) + "\n")
    config = load_config(
        "gpt2-tiny-cpu",
        [f"data.path={path}", f"model.tokenizer={tiny_model}", "data.on_bad_record=skip"],
    )
    template = load_template(config)
    started = []
    sets = []
    for limit, folder in ((1 << 40, "serial"), (0, "parallel")):
        monkeypatch.setattr(dataset, "PARALLEL_BYTES", limit)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        start = lambda: started.append(True)  # noqa: E731
        sets.append(tokenised_set(config, str(path), template, start))
    serial, parallel = sets
    assert started == [True]
    assert len(serial.records) == 5500
    for name in ("input_ids", "loss_mask", "records"):
        assert np.array_equal(getattr(serial, name), getattr(parallel, name))
    assert serial.counts == parallel.counts
    assert workers_share(serial) == {(False, False)}
    assert (
        serial.counts.first_bad == f"{path} line 3211: a record is a JSON object, but this is list"
    )


def workers_share(tokenised: TokenisedSet) -> set[tuple[bool, bool]]:
    """(owns its memory, may write to it) for each array that a worker gets: a copy does both."""
    import ray

    @ray.remote
    def flags(found: TokenDataset) -> set[tuple[bool, bool]]:
        arrays = (found.input_ids, found.loss_mask)
        return {(a.flags.owndata, a.flags.writeable) for a in arrays}

    shared = ray.put(select(tokenised, np.arange(len(tokenised.records))))
    result: set[tuple[bool, bool]] = ray.get(flags.remote(shared))
    return result


def test_chatml_gives_a_pretrained_model_its_tokens(
    tiny_model: Path, tmp_path: Path, running_ray: dict[str, str]
) -> None:
    """Under ZeRO-3 with two workers: trained, exported, and answering as transformers does."""
    overrides = [
        "model.init=pretrained",
        f"model.path={tiny_model}",
        "model.tokenizer=none",
        f"data.path={tiny_model.parent / 'records.json'}",
        "data.template=chatml",
        "data.train_on=last_turn",
        "batch.seq_len=128",
        "batch.micro_batch_size=4",
        "batch.global_batch_size=8",
        "run.max_steps=20",
        "run.samples=1",
        "eval.every_steps=0",
        "eval.exact_match_records=0",
        "checkpoint.every_steps=0",
        "optim.lr=2e-3",
    ]
    sets = [word for override in overrides for word in ("--set", override)]
    words = ("train", "gpt2-tiny-cpu", "--name", "r", "--json")
    outcome = run_raysft(*words, *sets, cwd=tmp_path, **running_ray)
    assert outcome.code == 0, outcome.stderr
    assert outcome.summary["export_logit_difference"] < 1e-3
    assert outcome.summary["train_loss_last"] < outcome.summary["train_loss_first"] - 1

    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = AutoTokenizer.from_pretrained(tiny_model)
    model_dir = tmp_path / "runs/r/model"
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    assert len(tokenizer) == model.config.vocab_size == len(before) + 2
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    assert model.generation_config.eos_token_id == ends
    question = "Sort the words.\npear apple"
    answer = run_raysft("generate", "runs/r", question, "--max-new-tokens", "40", cwd=tmp_path)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    reply = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.stdout.strip() == reply.strip()
