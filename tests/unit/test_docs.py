"""README.md and docs/ hold what the code holds: commands, configs and links. Nothing is run."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

from raysft.cli.app import app
from raysft.config.load import load_config, preset_names, read_source, validate
from raysft.data import demo
from raysft.verbs.registry import VERBS
from tests import documented
from tests.documented import ROOT, Block

RAYSFT = documented.commands("raysft")
TOML = list(documented.blocks("toml"))


def resolved(words: list[str]) -> tuple[Any, list[str]]:
    """The command that a line names, and its arguments."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:  # `raysft tune CONFIG`, `raysft runs`
            words = [command.default, *words]
        command, words = command.commands[words[0]], words[1:]
    return command, words


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


@pytest.mark.parametrize("words", RAYSFT, ids=shlex.join)
def test_commands_exist(words: list[str]) -> None:
    """With their options, and the settings that they give a preset."""
    command, arguments = resolved(words)
    command.make_context(command.name, list(arguments))
    if arguments and arguments[0] in preset_names():
        load_config(arguments[0], documented.overrides(arguments))


def test_commands_of_every_verb_are_shown() -> None:
    verbs = {words[0] for words in RAYSFT}
    assert {"train", "data", "export", "generate", "runs", "estimate", "bench", "tune"} <= verbs
    assert {"pairs", "reward", "dpo", "ppo", "align"} <= verbs
    assert {"doctor", "attach"} <= verbs


@pytest.mark.parametrize("block", TOML, ids=lambda block: block.page.name)
def test_configs_are_valid(block: Block) -> None:
    """A part of one over the demo's, with a tokenizer for records that are not the demo's."""
    raw = tomllib.loads(block.text)
    if "model" not in raw:
        assert block.file_name is None, "a file needs a [model]"
        demo = merged(read_source("gpt2-tiny-cpu"), {"model": {"tokenizer": "./my-tokenizer"}})
        raw = merged(demo, raw)
    config = validate(raw, where=block.page.name)
    verb = next((name for name in ("tune", "align") if name in raw), "train")
    VERBS[verb].plan(config)


@pytest.mark.parametrize("page", documented.pages(), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in documented.links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert target.exists(), f"there is no {link}"
        if anchor:
            assert anchor in documented.anchors(target), f"{target.name} has no heading {anchor}"


def test_every_file_that_the_design_names_is_there() -> None:
    text = (ROOT / "docs/design.md").read_text()
    named = set(re.findall(r"`((?:\w+/)+\w+\.\w+)`", text))
    assert len(named) > 20
    missing = [name for name in named if "NAME" not in name and not is_there(name)]
    assert missing == []


def is_there(name: str) -> bool:
    return any((base / name).exists() for base in (ROOT / "raysft", ROOT))


def test_the_first_answer_shown_is_right() -> None:
    """What the demo's model says, as far as the demo's own rules go."""
    text = (ROOT / "README.md").read_text()
    shown = re.findall(r'^raysft generate runs/demo "(.*?)"  # (.*)$', text, re.MULTILINE)
    assert [demo.solve(question, "") for question, _ in shown] == [answer for _, answer in shown]
    assert shown


@pytest.mark.parametrize("target", documented.commands("make"), ids=shlex.join)
def test_make_targets_exist(target: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *target], cwd=ROOT, check=True, capture_output=True)


def test_what_to_type_without_make_is_what_make_does() -> None:
    """The commands for machines without make are those of the Makefile."""
    plan = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo", "test", "PYTHON=python3", "NAME=demo"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    flat = " ".join(plan.split()).replace("--quiet --disable-pip-version-check ", "")
    by_hand = [line for line in documented.lines() if line.startswith((".venv", "python3"))]
    assert len(by_hand) == 4
    for line in by_hand:
        assert " ".join(shlex.split(line)) in flat.replace("'", ""), line


def test_every_claim_has_a_verdict_that_the_table_repeats() -> None:
    """And a link to what says so, but for what is not measured."""
    text = (ROOT / "docs/claims.md").read_text()
    table = dict(re.findall(r"^\| \[(\d+)\]\(#.*\| ([^|]+) \|$", text, re.MULTILINE))
    parts = re.split(r"^## (\d+)\. ", text, flags=re.MULTILINE)[1:]
    claims = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(claims) == list(table) == [str(number) for number in range(1, 13)]
    for number, claim in claims.items():
        told = " ".join(re.findall(r"\*\*(.+?)\*\*", claim, re.DOTALL)).lower().replace("\n", " ")
        verdict = table[number].partition(",")[0]
        assert verdict in told, f"claim {number}: {verdict!r} and {told!r}"
        assert verdict == "not measured yet" or "](.." in claim, f"claim {number} shows nothing"
