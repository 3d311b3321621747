"""-h, -V, an example in each command's help, and what a Tab offers."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from raysft.cli.app import app
from raysft.config.training import Schedule
from tests.conftest import run_raysft
from tests.unit.test_docs import resolved


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that lead to it."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, (*path, name))


LEAVES = list(leaves(typer.main.get_command(app)))


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_each_help_has_an_example_that_parses(path: tuple[str, ...], command: Any) -> None:
    shown = CliRunner().invoke(app, [*path, "-h"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert shown.exit_code == 0
    found = re.search(r"^ *Example: (raysft .*?) *$", shown.output, re.MULTILINE)
    assert found, shown.output
    named, arguments = resolved(shlex.split(found[1])[1:])
    # `bench report` and `tune report` are one function with one example.
    assert named.name == command.name, f"{found[1]} is of another command"
    named.make_context(named.name, list(arguments))
    assert found[1] in (command.help or ""), "cut by the width of a terminal"


@pytest.mark.parametrize("words", [("-h",), ("train", "-h"), ("tune", "-h"), ("config", "-h")])
def test_the_short_form_is_the_long_one(words: tuple[str, ...]) -> None:
    long = [*words[:-1], "--help"]
    outputs = {CliRunner().invoke(app, some).output for some in (list(words), long)}
    assert len(outputs) == 1
    assert "Usage: " in outputs.pop()


def test_the_version_in_short(tmp_path: Path) -> None:
    assert run_raysft("-V", cwd=tmp_path).stdout == "raysft 0.1.0\n"


def completed(line: str, cwd: Path) -> list[str]:
    """What bash would be offered at the end of a line."""
    outcome = run_raysft(
        cwd=cwd,
        _RAYSFT_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(line.split(" ")) - 1),
    )
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout.split()


def test_a_tab_completes_presets_runs_files_and_keys(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(json.dumps({}))
    (tmp_path / "runs/other").mkdir()
    (tmp_path / "my.toml").touch()
    (tmp_path / "my.json").touch()
    assert completed("raysft train gpt2-t", tmp_path) == ["gpt2-tiny-cpu"]
    assert completed("raysft train my", tmp_path) == ["my.toml"]
    assert completed("raysft train ru", tmp_path) == ["runs/"]
    assert completed("raysft train runs/f", tmp_path) == ["runs/first"]
    assert {"gpt2", "my.toml", "runs/first"} <= set(completed("raysft estimate ", tmp_path))
    assert completed("raysft train gpt2 --set optim.l", tmp_path) == ["optim.lr="]
    assert completed("raysft train gpt2 --name s", tmp_path) == ["second"]
    assert completed("raysft export runs/s", tmp_path) == ["runs/second"]
    assert completed("raysft attach f", tmp_path) == ["first"]
    assert completed("raysft config list sch", tmp_path) == [
        "schedule",
        *(f"schedule.{key}" for key in Schedule.model_fields),
    ]
    assert completed("raysft conf", tmp_path) == ["config"]
