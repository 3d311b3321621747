"""A run that keeps its best model, and ends where it gets no better."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raysft.config.schema import Config
from raysft.data.dataset import Prepared
from raysft.runs import snapshot
from raysft.runs.events import Event, Metrics, Started
from raysft.train.checkpoint import repair
from tests.ray.conftest import fit_in, tiny_config

pytestmark = pytest.mark.usefixtures("cluster")

SETTINGS = (
    "run.max_steps=200", "eval.every_steps=3", "eval.patience=3", "checkpoint.keep_best=true",
    "checkpoint.every_steps=4", "checkpoint.keep=100", "data.eval_fraction=0.25", "optim.lr=1e-2",
    "schedule.warmup_steps=0", "log.every_steps=100",
)  # fmt: skip


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Config:
    """Answers that have no reason: a model can learn those that it has seen, and no others."""
    draw = random.Random(0)
    records = [
        {"prompt": f"word {n}", "completion": "".join(draw.choices("abcdefgh", k=12))}
        for n in range(48)
    ]
    (tmp_path / "noise.json").write_text(json.dumps(records))
    return tiny_config(tiny_model, f"data.path={tmp_path / 'noise.json'}", *SETTINGS)


def heldout_losses(events: list[Event]) -> dict[int, float]:
    lines = [event for event in events if isinstance(event, Metrics)]
    return {e.step: e.values["eval_loss"] for e in lines if e.step and "eval_loss" in e.values}


def loss_by_transformers(folder: Path, data: Prepared) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total, count = 0.0, 0
    held = data.heldout
    for begin, length in zip(held.starts, held.lengths, strict=True):
        ids, mask = (
            torch.as_tensor(part[begin : begin + length].copy())
            for part in (held.input_ids, held.loss_mask)
        )
        logits = model(ids[None].long()).logits[0, :-1].log_softmax(-1)
        chosen = logits.gather(1, ids[1:, None].long())[:, 0][mask[1:].bool()]
        total, count = total - chosen.sum().item(), count + len(chosen)
    return total / count


def test_the_model_is_the_best_one_and_a_resumed_run_finds_the_same(
    config: Config, tmp_path: Path
) -> None:
    result, events, data = fit_in(tmp_path / "run", config)
    losses = heldout_losses(events)
    best = min(losses, key=lambda step: losses[step])
    last = max(losses)
    assert last == best + 3 * 3 < 200
    totals = result.totals
    assert totals["ended_early"] is True
    assert (totals["step"], totals["best_step"], totals["model_step"]) == (last, best, best)
    assert totals["best_eval_loss"] == losses[best] < totals["eval_loss_last"] == losses[last]
    assert totals["export_logit_difference"] < 1e-4
    assert loss_by_transformers(tmp_path / "run/model", data) == pytest.approx(losses[best], 1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "run/model")
    saved = snapshot.checkpoints_by_step(tmp_path / "run")
    assert last in saved

    # As if it had been killed after the checkpoint before the last evaluation but one.
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for step, folder in snapshot.checkpoints_by_step(tmp_path / "again").items():
        if step > last - 4:
            shutil.rmtree(folder)
    repair.repair(tmp_path / "again")
    again, told, _ = fit_in(tmp_path / "again", config)
    assert 0 < next(event.step for event in told if isinstance(event, Started)) < last
    named = ("step", "best_step", "best_eval_loss", "eval_loss_last", "ended_early", "model_step")
    assert {name: again.totals[name] for name in named} == {name: totals[name] for name in named}

    # One that has ended goes on where it is given more patience, and does nothing where it is not.
    idle, told, _ = fit_in(tmp_path / "run", config)
    assert next(event.step for event in told if isinstance(event, Started)) == last
    assert idle.totals["step"] == last
