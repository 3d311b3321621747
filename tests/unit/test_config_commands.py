"""`raysft config`, and a run as the config of another."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from raysft.config.keys import find_tables, keys, tables
from raysft.config.load import load_config, preset_names, read_source, validate
from raysft.config.of_run import short_name
from raysft.config.reference import headings, toml
from raysft.config.schema import Config
from raysft.config.write import as_toml
from raysft.errors import UserError
from tests.conftest import run_raysft
from tests.unit.test_config import NEEDED


def config_of(text: str) -> Config:
    return validate(tomllib.loads(text), where="the text")


@pytest.mark.parametrize("name", preset_names())
def test_what_is_shown_is_the_same_config(name: str) -> None:
    config = load_config(name, NEEDED.get(name, ()))
    shown = as_toml(config.model_dump(mode="json", exclude_none=True))
    assert config_of(shown) == config
    copied = as_toml(read_source(name), commented=True)
    assert tomllib.loads(copied) == read_source(name)
    assert "# Also: " in copied


AWKWARD: dict[str, Any] = {
    "model": {"path": 'a "b" \\ é 🙂 \x7f \n', "dropout": 1e-7},
    "data": {
        "path": [{"path": "a.jsonl", "weight": 0.5, "fields": {"prompt": "q"}}, "b.jsonl"],
        "date": "2026-01-31",
    },
    "optim": {"lr": 1e-05, "betas": [0.9, 1.0]},
    "scaling": {"workers": [1, 4]},
    "tune": {"space": {"optim.lr": {"int": [1, 2]}, "model.dropout": {"choice": [True, "x", 1.5]}}},
}


def test_whatever_a_config_holds_comes_back() -> None:
    config = validate(AWKWARD, where="here")
    assert config_of(as_toml(config.model_dump(mode="json", exclude_none=True))) == config
    assert config_of(as_toml(AWKWARD, commented=True)) == config


def test_show_and_copy_as_typed(tmp_path: Path) -> None:
    sets = ("--set", "optim.lr=1e-4")
    shown = run_raysft("config", "show", "gpt2-tiny-cpu", *sets, cwd=tmp_path)
    wanted = load_config("gpt2-tiny-cpu", ["optim.lr=1e-4"])
    assert config_of(shown.stdout) == wanted
    copied = run_raysft("config", "copy", "gpt2-tiny-cpu", "my.toml", *sets, cwd=tmp_path)
    assert (copied.code, copied.stdout) == (0, "my.toml\n"), copied.stderr
    text = (tmp_path / "my.toml").read_text()
    assert text.startswith("# The demo: a small GPT-2 from scratch")
    assert "# Peak learning rate, reached at the end of warmup.\nlr = 0.0001\n" in text
    assert max(map(len, text.splitlines())) <= 100
    assert load_config(str(tmp_path / "my.toml")) == wanted


@pytest.mark.parametrize(
    ("file", "words"),
    [("my.toml", "is there already"), ("my.txt", "must end in .toml"), ("no/my.toml", "no folder")],
)
def test_copy_overwrites_nothing(tmp_path: Path, file: str, words: str) -> None:
    (tmp_path / "my.toml").write_text("mine")
    outcome = run_raysft("config", "copy", "gpt2-tiny-cpu", file, cwd=tmp_path)
    assert outcome.code == 2
    assert words in outcome.stderr
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("my.toml", "mine")]


def test_check_says_what_it_comes_to(tmp_path: Path) -> None:
    good = run_raysft("config", "check", "gpt2-tiny-cpu", cwd=tmp_path)
    assert (good.code, good.stdout) == (0, "gpt2-tiny-cpu is valid\n")
    assert "600 (run.max_steps) x 64 = 38,400 records seen" in good.stderr
    bad = run_raysft("config", "check", "gpt2-tiny-cpu", "--set", "optim.lrr=1", cwd=tmp_path)
    assert (bad.code, bad.stdout) == (2, "")
    assert "did you mean 'lr'?" in bad.stderr
    assert not any(tmp_path.iterdir())


def test_every_key_is_listed_once_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    listed = run_raysft("config", "list", cwd=tmp_path, COLUMNS="80").stdout
    assert max(map(len, listed.splitlines())) <= 80
    heads = [
        line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "
    ]
    assert heads == [key.name for table in tables() for key in table.keys]
    assert len(heads) == sum(len(section.model_fields) for section in headings())
    assert "  checkpoint.keep = 2  integer, at least 1 [checkpoints]\n" in listed
    assert "  data.path  required  string, or list of strings or tables\n" in listed


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("optim", ["[optim]"]),
        ("model", ["[model]", "[model.shape]"]),
        ("data.fields", ["[data]", "[data.fields]"]),
        ("optim.lr", ["[optim]"]),
        ("tune.space", ["[tune]", "A table in tune.space"]),
    ],
)
def test_part_of_the_keys(wanted: str, found: list[str]) -> None:
    assert [table.heading for table in find_tables(wanted)] == found


def test_a_key_that_is_not_there_is_told(tmp_path: Path) -> None:
    outcome = run_raysft("config", "list", "optin", cwd=tmp_path)
    assert outcome.code == 2
    assert "did you mean 'optim'?" in outcome.stderr
    with pytest.raises(UserError, match=r"did you mean 'optim\.lr'"):
        find_tables("optim.ls")


def test_defaults_are_those_of_the_schema() -> None:
    for section in Config.model_fields:
        for name, value in getattr(Config(**required()), section):
            key = keys()[f"{section}.{name}"]
            if section not in required() and value is not None:
                assert key.default == toml(value)


def required() -> dict[str, Any]:
    return {"model": {"path": "m"}, "data": {"path": "d"}}


# A run as a config


@pytest.fixture
def planned(own_files: Path) -> Path:
    """The folder of a run whose "auto" values were chosen, as a job writes it."""
    sets = [*NEEDED["pretrained-cpu"], "run.epochs=2", "model.dropout=0.1"]
    words = [word for setting in sets for word in ("--set", setting)]
    outcome = run_raysft(
        "train", "pretrained-cpu", *words, "--name", "first", "--dry-run", cwd=own_files
    )
    assert outcome.code == 0, outcome.stderr
    folder = own_files / "runs/first"
    spec = json.loads((folder / "run.json").read_text())
    chosen = {"engine.zero_stage": 2, "model.activation_checkpointing": True}
    chosen["batch.tokens_per_micro_batch"] = 1024
    for key, value in chosen.items():
        section, name = key.split(".")
        spec["config"][section][name] = value
    (folder / "run.json").write_text(json.dumps(spec | {"chosen": chosen}))
    return folder


def test_a_run_starts_again_under_a_name_of_its_own(planned: Path) -> None:
    here = planned.parents[1]
    for source in ("runs/first", "runs/first/run.json"):
        outcome = run_raysft("train", source, "--set", "optim.lr=1e-3", "--dry-run", cwd=here)
        assert outcome.code == 0, outcome.stderr
        file = here / outcome.stdout.split()[-1]
        assert file.parent.name.startswith("first-20")
        config = json.loads(file.read_text())["config"]
        assert (config["model"]["path"], config["model"]["dropout"]) == ("./my-model", 0.1)
        assert (config["run"]["epochs"], config["optim"]["lr"]) == (2.0, 1e-3)
        left = validate(config, where="again").left_open
        assert len(left) == 3, "what was chosen for one machine is chosen anew"
        assert short_name(str(file.parent)) == "first"
        file.unlink()
        file.parent.rmdir()


def test_a_run_is_shown_and_copied(planned: Path) -> None:
    here = planned.parents[1]
    shown = run_raysft("config", "show", "runs/first", cwd=here)
    config = config_of(shown.stdout)
    assert config.run.name is None
    assert config == load_config(str(planned))
    run_raysft("config", "copy", "runs/first", "my.toml", cwd=here)
    copied = (here / "my.toml").read_text()
    assert load_config(str(here / "my.toml")) == config
    assert "compile =" not in copied, "defaults are left out"


def test_a_run_goes_on_without_its_name_typed(planned: Path) -> None:
    outcome = run_raysft("train", "runs/first", "--resume", "--dry-run", cwd=planned.parents[1])
    assert outcome.code == 2
    assert "runs/first has no checkpoint to resume from" in outcome.stderr


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"config": 3}', '{"config": {}, "chosen": {"a": 1}}']
)
def test_a_damaged_run_is_told(planned: Path, damage: str) -> None:
    (planned / "run.json").write_text(damage)
    outcome = run_raysft("config", "show", "runs/first", cwd=planned.parents[1])
    assert outcome.code == 2
    assert "runs/first/run.json is no config" in outcome.stderr
    assert "Traceback" not in outcome.stderr
