"""Checkpoints of adapters: small, gone on with by others, and written as models and as adapters."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raysft.config.schema import Config
from raysft.model.generate import load
from raysft.runs import rundir, snapshot
from raysft.runs.events import Event, Started, Workers
from raysft.train.checkpoint import repair
from raysft.train.checkpoint.export import export_checkpoint, read_weights
from tests.ray.conftest import fit_in, steps_of, tiny_config

pytestmark = pytest.mark.usefixtures("cluster")
SAVED = ("adapter.rank=4", "run.max_steps=6", "checkpoint.every_steps=3", "optim.lr=1e-2")
PACKS = "batch.tokens_per_micro_batch=128"


def laid_out(tiny_model: Path, stage: int, workers: int, *more: str) -> Config:
    layout = (f"engine.zero_stage={stage}", f"scaling.workers={workers}", PACKS)
    return tiny_config(tiny_model, *SAVED, *layout, *more)


def cut(folder: Path, to: Path) -> Path:
    """The run as if it had been killed after its first checkpoint."""
    again = shutil.copytree(folder, to)
    shutil.rmtree(snapshot.checkpoints_by_step(again)[6])
    shutil.rmtree(again / rundir.MODEL)
    repair.repair(again)
    return again


def goes_on(events: list[Event]) -> list[tuple[float, float]]:
    assert [event.step for event in events if isinstance(event, Started)] == [3]
    return losses(events)


def losses(events: list[Event]) -> list[tuple[float, float]]:
    return [(step["loss"], step["grad_norm"]) for step in steps_of(events) if step["step"] > 3]


CASES = [(0, 2, "lora"), (1, 3, "lora"), (2, 0, "rslora"), (3, 1, "dora")]


@pytest.mark.parametrize(("stage", "then", "variant"), CASES)
def test_it_goes_on_to_the_bit_and_with_others(
    tiny_model: Path, tmp_path: Path, stage: int, then: int, variant: str
) -> None:
    """As it was, to the bit; and by one worker at another stage."""
    config = laid_out(tiny_model, stage, 2, f"adapter.variant={variant}")
    _, events, _ = fit_in(tmp_path / "run", config)
    wanted = losses(events)
    counts = next(event for event in events if isinstance(event, Workers))
    assert counts.trained < counts.parameters / 20
    saved = snapshot.checkpoints_by_step(tmp_path / "run")[3]
    state = sum(path.stat().st_size for path in saved.glob("state/*"))
    # fp32 weights on each of two workers, and the optimizer's weights and moments.
    assert state < 24 * counts.trained + 300_000 < 4 * counts.parameters / 4
    assert all("lora_" in name for name in read_weights(saved))

    _, told, _ = fit_in(cut(tmp_path / "run", tmp_path / "same"), config)
    assert goes_on(told) == wanted
    others = laid_out(tiny_model, then, 1, f"adapter.variant={variant}")
    _, told, _ = fit_in(cut(tmp_path / "run", tmp_path / "others"), others)
    assert goes_on(told) == [pytest.approx(row, abs=1e-4) for row in wanted]


def test_its_dropout_goes_on_to_the_bit(tiny_model: Path, tmp_path: Path) -> None:
    config = laid_out(tiny_model, 3, 2, "adapter.dropout=0.2")
    _, events, _ = fit_in(tmp_path / "run", config)
    _, told, _ = fit_in(cut(tmp_path / "run", tmp_path / "same"), config)
    assert goes_on(told) == losses(events)
    without = laid_out(tiny_model, 3, 2)
    _, told, _ = fit_in(cut(tmp_path / "run", tmp_path / "without"), without)
    assert goes_on(told) != losses(events)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(2, 40)[None]).logits.float()
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("stage", "variant"), [(1, "rslora"), (3, "lora"), (3, "dora")])
def test_it_is_written_merged_or_alone(
    tiny_model: Path, tmp_path: Path, stage: int, variant: str, precision: str
) -> None:
    """By the run as its config says, and by an export either way; peft and transformers load it."""
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    run = tmp_path / "run"
    settings = (f"adapter.variant={variant}", f"engine.precision={precision}")
    config = laid_out(tiny_model, stage, 1, *settings, "adapter.merge=false")
    result, _, _ = fit_in(run, config)
    rounding = 1e-4 if precision == "fp32" else 0.1
    assert result.totals["export_logit_difference"] < rounding
    spec = {"verb": "train", "config": config.model_dump(mode="json"), "stamp": {"utc": ""}}
    rundir.write_json(run / rundir.RUN, spec)
    merged = export_checkpoint(run, tmp_path / "merged", merged=True)
    alone = export_checkpoint(run, tmp_path / "alone")
    for folder in (run / rundir.MODEL, alone):
        assert not (folder / "config.json").exists()
        assert (folder / "tokenizer.json").exists()
    assert "AutoPeftModelForCausalLM" in (alone / "README.md").read_text()
    found, again = (load_file(f / "adapter_model.safetensors") for f in (alone, run / rundir.MODEL))
    assert found.keys() == again.keys()
    assert all(torch.equal(found[name], again[name]) for name in found)

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    before = logits(base)
    wanted = logits(PeftModel.from_pretrained(base, alone))
    assert (wanted - before).abs().max() > 0.3, "it has learnt too little to show anything"
    loaded = [AutoModelForCausalLM.from_pretrained(merged)]
    loaded += [AutoPeftModelForCausalLM.from_pretrained(alone)]
    loaded += [load(str(folder))[0] for folder in (merged, alone)]  # as raysft generate
    for model in loaded:
        assert torch.allclose(logits(model), wanted, atol=rounding)
