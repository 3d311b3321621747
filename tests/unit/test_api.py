"""The functions for notebooks: what needs no Ray."""

import io
import json
import sys
from pathlib import Path

import pytest

import raysft
from raysft.cli import api, terminal
from raysft.errors import UserError
from tests.conftest import run_raysft


def test_rooms_are_called_and_entered() -> None:
    """Whichever comes first."""
    import raysft.estimate.memory
    import raysft.train.step

    assert raysft.train.step.train_step.__name__ == "train_step"
    assert callable(raysft.train)
    assert callable(raysft.estimate)
    with pytest.raises(AttributeError, match="no attribute 'tune'"):
        raysft.tune  # noqa: B018


def test_an_estimate_is_that_of_the_command(tmp_path: Path) -> None:
    settings = ("--device", "h100", "--set", "batch.seq_len=512", "--json")
    typed = run_raysft("estimate", "gpt2-large", *settings, cwd=tmp_path)
    called = raysft.estimate("gpt2-large", device="h100", batch={"seq_len": 512})
    assert json.loads(json.dumps(called)) == typed.summary


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"optim": {"learning_rate": 1}}, "optim.learning_rate: no such key"),
        ({"lr": 1}, "lr: no such key"),
        ({"optim": 3}, "optim"),
        ({"optim": {"lr": "much"}}, "optim.lr"),
    ],
)
def test_mistakes_are_told(overrides: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        raysft.estimate("gpt2-tiny-cpu", **overrides)  # type: ignore[arg-type]


def test_a_config_may_be_a_dict_with_paths(tmp_path: Path) -> None:
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 2}
    model = {"init": "scratch", "tokenizer": "demo", "shape": shape}
    sections = {"model": model, "data": {"path": "demo"}, "run": {"storage": tmp_path}}
    facts = raysft.estimate(sections, optim={"lr": None}, model={"shape": {"n_layer": 3}})
    assert facts["dims"]["n_layer"] == 3


def test_a_run_that_is_none() -> None:
    with pytest.raises(UserError, match="is no run directory"):
        raysft.load_run("nowhere")


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    spec = {"verb": "train", "config": {"optim": {"lr": 1e-3}}, "stamp": {"utc": "now"}}
    (tmp_path / "run.json").write_text(json.dumps(spec))
    run = raysft.load_run(tmp_path)
    assert (run.status, run.config) == ("planned", {"optim": {"lr": 1e-3}})
    assert run.metrics.empty
    with pytest.raises(UserError, match="no step yet"):
        run.plot()
    with pytest.raises(UserError, match="has no model"):
        run.model()
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval_loss": 2.0}\n{"step": 2, "lo')
    assert run.metrics.eval_loss.to_dict() == {0: 2.0}
    assert "<td>planned</td>" in run._repr_html_()


def test_what_is_shown_later_goes_to_where_standard_error_is_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with api.shown_on_stdout():
        terminal.error("within")
    later = io.StringIO()
    monkeypatch.setattr(sys, "stderr", later)
    terminal.error("after")
    assert "within" in capsys.readouterr().out
    assert "after" in later.getvalue()
