"""fp16: refused where the CPU has none; overflows skipped, said, and kept out of the schedule."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raysft.errors import UserError
from tests.ray.conftest import CPU_MULTIPLIES_FP16, fit_in, steps_of, tiny_config

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.mark.skipif(CPU_MULTIPLIES_FP16, reason="this CPU multiplies fp16")
def test_a_cpu_that_cannot_multiply_fp16_is_told(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engine.precision: fp16 needs .* this CPU cannot"):
        fit_in(tmp_path, tiny_config(tiny_model, "engine.precision=fp16"))


@pytest.mark.skipif(not CPU_MULTIPLIES_FP16, reason="this CPU cannot multiply fp16")
def test_overflowing_updates_are_skipped_and_do_not_advance_the_schedule(
    tiny_model: Path, tmp_path: Path
) -> None:
    """A last layer norm scaled by 100 makes gradients that overflow at the first loss scale."""
    loud = tmp_path / "loud" / "model"
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        model.transformer.ln_f.weight *= 100
    model.save_pretrained(loud)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(loud)
    records = (tiny_model.parent / "records.json").read_text()
    assert json.loads(records)
    (loud.parent / "records.json").write_text(records)

    config = tiny_config(
        loud, "engine.precision=fp16", "run.max_steps=12", "schedule.warmup_steps=10"
    )
    result, events, _ = fit_in(tmp_path / "run", config)
    steps = steps_of(events)
    skipped = [step["skipped_steps"] for step in steps]
    assert 0 < sum(skipped) < 12
    assert result.totals["applied_steps"] == 12 - sum(skipped)
    for index, step in enumerate(steps):
        applied_before = index - sum(skipped[:index])
        assert step["lr"] == pytest.approx(config.optim.lr * min(10, applied_before + 1) / 10)
        assert (step["grad_norm"] is None) == bool(step["skipped_steps"])
        assert (step["tokens_per_second"] is None) == bool(step["skipped_steps"])
    json.dumps(steps, allow_nan=False)
