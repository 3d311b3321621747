"""Every mistake is told at once: exit code 2, one message, and no folder or file is left."""

import json
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from raysft.cli import app
from raysft.config.near import all_keys, known_keys
from raysft.config.other_names import OTHER_NAMES, OTHER_VALUES, SECTIONS
from raysft.data import hub
from tests.conftest import run_raysft
from tests.unit.mistakes import MISTAKES, PAIRS, ROW, TOML, Mistake

GPT2 = {"model_type": "gpt2", "vocab_size": 12, "n_positions": 64, "n_layer": 1, "n_embd": 8}
SETTINGS = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "0"}


def tokenizer_json(size: int) -> str:
    return json.dumps({"model": {"type": "BPE", "vocab": {str(i): i for i in range(size)}}})


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files of a sound run that only the checks look at."""
    tokenizer = {
        "tokenizer.json": tokenizer_json(10),
        "tokenizer_config.json": json.dumps(SETTINGS),
    }
    config = {"config.json": json.dumps(GPT2 | {"n_head": 1})}
    model = {**config, "model.safetensors": "", **tokenizer}
    folders: dict[str, dict[str, str]] = {
        ".": {"run.toml": TOML + "[batch]\nseq_len = 64\n", "records.jsonl": ROW, "notes.txt": "-"},
        "model": model,
        "tokenizer": tokenizer,
        "large": tokenizer | {"tokenizer.json": tokenizer_json(40)},
        "bare": config,
        "parent/inside": model,
        "runs/first": {"run.json": "{}", "metrics.jsonl": ""},
        "runs/first/model": model,
    }
    for folder, files in folders.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (tmp_path / folder / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cluster or a hub; what would start a job is an error here."""

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a job would have started")

    monkeypatch.setattr("raysft.cli.launch.run_here", start)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    hub.ask.cache_clear()


def words_of(mistake: Mistake) -> list[str]:
    words = shlex.split(mistake.typed) if mistake.typed.startswith("raysft") else []
    if words:
        return words
    return [
        "raysft",
        "train",
        "run.toml",
        *(w for s in mistake.typed.split() for w in ("--set", s)),
    ]


def typed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def test_there_are_many() -> None:
    assert len({mistake.typed + str(mistake.files) for mistake in MISTAKES}) >= 100


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: f"{m.typed} {' '.join(m.env)}".strip())
def test_a_mistake(
    mistake: Mistake,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, content in mistake.files.items():
        (workspace / name).parent.mkdir(exist_ok=True)
        (workspace / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    for name, value in mistake.env.items():
        monkeypatch.setenv(name, value)
    before = sorted(workspace.rglob("*"))
    code = typed(words_of(mistake), monkeypatch)
    stdout, stderr = capsys.readouterr()
    assert code == 2, stderr
    assert not stdout
    assert stderr.count("error:") == 1, stderr
    assert "Traceback" not in stderr
    flat = " ".join(stderr.split())
    for part in mistake.told:
        assert part in flat
    assert sorted(workspace.rglob("*")) == before


def test_without_a_mistake_it_runs(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So each of the above is told of its own mistake."""
    for words in (["train", "run.toml"], ["tune", "run.toml"], ["bench", "seq-len", "run.toml"]):
        more = ["--set", "bench.seq_lens=[16]"] if words[0] == "bench" else []
        assert typed(["raysft", *words, *more, "--dry-run", "--name", words[0]], monkeypatch) == 0
        assert (workspace / "runs" / words[0] / "run.json").exists()
    labelled = '{"prompt": "a", "completion": "b", "label": true}\n'
    (workspace / "pairs.jsonl").write_text(PAIRS)
    (workspace / "labelled.jsonl").write_text(labelled + labelled.replace("true", "false"))
    for verb, data in (
        ("dpo", "pairs"),
        ("reward", "pairs"),
        ("dpo", "labelled"),
        ("pairs", "records"),
    ):
        words = ["raysft", verb, "run.toml", "--dry-run", "--name", f"{verb}-{data}"]
        assert typed([*words, "--set", f"data.path={data}.jsonl"], monkeypatch) == 0
    for data in ("pairs", "records"):  # a config by itself may be of either
        words = ["raysft", "config", "check", "run.toml", "--set", f"data.path={data}.jsonl"]
        assert typed(words, monkeypatch) == 0
    told = capsys.readouterr().err
    assert "warning" not in told
    assert "held out: none" in told  # `raysft pairs` reads them all


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_names_stand_for_keys(name: str) -> None:
    assert OTHER_NAMES[name] in all_keys()


def test_other_sections_and_values_are_known() -> None:
    assert set(SECTIONS.values()) <= set(known_keys([]))
    assert set(OTHER_NAMES) >= OTHER_VALUES


def test_a_synthetic_benchmark_reads_no_data(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ("bench.synthetic=true", "data.path=no.jsonl", "bench.seq_lens=[16]")
    words = [word for one in sets for word in ("--set", one)]
    assert typed(["raysft", "bench", "seq-len", "run.toml", *words, "--dry-run"], monkeypatch) == 0
    assert (workspace / "runs").exists()


def test_of_a_cluster_only_what_can_be_known_here_is_told(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["raysft", "train", "run.toml", "--address", "http://127.0.0.1:1", "--dry-run"]
    there += ["--set", "run.storage=/shared/runs", "--name", "x"]
    sets = ("data.path=/shared/r.jsonl", "model.path=acme/model", "model.tokenizer=/shared/t")
    assert typed([*there, *(w for one in sets for w in ("--set", one))], monkeypatch) == 0
    assert "warning" not in capsys.readouterr().err
    assert typed([*there, "--set", "data.path=no.jsonl"], monkeypatch) == 2
    assert typed([*there, "--set", "model.path=./no"], monkeypatch) == 2
    assert "there is no folder ./no" in capsys.readouterr().err
    assert sorted(path.name for path in (workspace / "runs").iterdir()) == ["first"]


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes every call and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        calls: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    calls.append(listening.accept()[0])
                except OSError:
                    return

        Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        for call in calls:
            call.close()


def test_a_hub_that_is_silent_is_told_in_seconds(workspace: Path, silent: int) -> None:
    """As a person runs it, with the near name of a run, and no line of the hub's own library."""
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{silent}", "HF_HUB_OFFLINE": "0"}
    for words in (("train", "run.toml", "--set", "model.path=frist"), ("generate", "frist", "hi")):
        started = time.monotonic()
        outcome = run_raysft(*words, cwd=workspace, **env)
        assert outcome.code == 2, outcome.stderr
        wanted = "runs/first/model" if words[0] == "train" else "runs/first"
        assert f"hub does not answer; did you mean '{wanted}'?" in outcome.stderr
        assert len(outcome.stderr.splitlines()) == 1
        assert time.monotonic() - started < 40  # 5 s of waiting, on a machine that may be busy


def test_a_dry_run_only_warns_of_a_hub_that_is_silent(workspace: Path) -> None:
    words = ("train", "run.toml", "--dry-run", "--set", "model.path=acme/x", "--name", "x")
    outcome = run_raysft(*words, cwd=workspace, HF_HUB_OFFLINE="1")
    assert outcome.code == 0, outcome.stderr
    assert "warning: model.path: 'acme/x' is no local folder" in outcome.stderr


def test_a_mistake_costs_little(workspace: Path) -> None:
    """CPU seconds of the whole command, which a busy machine does not change."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcome = run_raysft("train", "run.toml", "--set", "data.path=no.jsonl", cwd=workspace)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert outcome.code == 2
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


SOUND = {
    "one part has nothing to learn from": (
        'data.path=["records.jsonl", "empty.jsonl"]',
        {"empty.jsonl": '{"prompt": "a", "completion": ""}\n'},
    ),
    "a bad record that is left out": (
        "data.path=bad.jsonl data.on_bad_record=skip", {"bad.jsonl": ROW + "{\n"},
    ),
    "a bad record that is not read": (
        "data.path=bad.jsonl data.max_records=1", {"bad.jsonl": ROW + "{\n"},
    ),
    "fields of the other part": (
        'data.path=["records.jsonl", "q.jsonl"] data.fields.prompt=q data.format=prompt_completion',
        {"q.jsonl": '{"q": "a", "completion": "b"}\n', "records.jsonl": ROW},
    ),
    "a template with a tag of transformers": (
        "data.template=t.jinja",
        {"t.jinja": "{%- generation %}{{ eos_token }}{% endgeneration %}"},
    ),
    "a tokenizer of a kind unknown here": (
        "model.tokenizer=odd", {"odd/tokenizer.json": '{"model": {"type": "New"}}'},
    ),
    "a model for text and images": (
        "model.path=both model.tokenizer=model",
        {"both/config.json": '{"model_type": "llava", "text_config": {"vocab_size": 12}}',
         "both/model.safetensors": ""},
    ),
    "a benchmark of a model larger than the disk": (
        "bench.seq_lens=[16] model.init=scratch "
        "model.shape={n_layer=4000,n_embd=16384,n_head=16} bench", {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_what_only_looks_like_a_mistake_runs(
    name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, files = SOUND[name]
    for file, content in files.items():
        (workspace / file).parent.mkdir(exist_ok=True)
        (workspace / file).write_text(content)
    verb = ["bench", "seq-len"] if settings.endswith(" bench") else ["train"]
    words = shlex.split(settings.removesuffix(" bench").replace('"', '\\"').replace(", ", ","))
    sets = [word for one in words for word in ("--set", one)]
    assert typed(["raysft", *verb, "run.toml", *sets, "--dry-run", "--name", "x"], monkeypatch) == 0
