"""What "auto" comes to on devices of several sizes, by estimate's arithmetic."""

import json
from pathlib import Path
from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.config.schema import Config
from raysft.estimate import choose as choosing
from raysft.estimate.choose import SAFE, choose, needed_gib
from raysft.estimate.families import gpt2_dims
from raysft.estimate.report import estimate
from raysft.estimate.shape import dims_of
from raysft.model.load import load_model_config, load_template
from raysft.runs import events, rundir
from raysft.runs.events import Event
from raysft.verbs import settle

LARGE = gpt2_dims(36, 1280, 20, 1024, 50_257)
AUTO = (
    "engine.zero_stage=auto", "model.activation_checkpointing=auto",
    "batch.tokens_per_micro_batch=auto",
)  # fmt: skip


def came_to(config: Config) -> tuple[int, bool, int]:
    return config.engine.stage, config.model.recomputes, config.batch.pack_tokens


@pytest.mark.parametrize(
    ("preset", "memory_gib", "workers", "wanted"),
    [
        ("gpt2-large", 80.0, 1, (1, False, 16_384)),
        ("gpt2-large", 40.0, 1, (1, False, 8_192)),  # a smaller pack rather than recomputing
        ("gpt2-large", 24.0, 1, (1, True, 16_384)),  # but not too small a pack
        ("gpt2-xl", 24.0, 4, (2, False, 4_096)),  # a higher stage rather than recomputing
        ("gpt2-xl", 16.0, 16, (2, False, 2_048)),  # nor a pack below a worker's share
        ("gpt2", 80.0, 1, (1, False, 16_384)),
    ],
)
def test_the_fastest_way_that_fits_is_taken(
    preset: str, memory_gib: float, workers: int, wanted: tuple[int, bool, int]
) -> None:
    config = load_config(preset, [f"scaling.workers={workers}"])
    dims = dims_of(config)
    chosen, why = choose(config, dims, memory_gib)
    assert came_to(chosen) == wanted
    assert not chosen.left_open
    needed = needed_gib(chosen, dims)
    assert needed <= SAFE * memory_gib
    assert f"= {needed:.1f} of {memory_gib:.1f} GiB a worker, at most 90%" in why
    # What lies before it in the order does not fit.
    order = choosing.in_order(config)
    before = order[: [way.of(config) for way in order].index(chosen)]
    assert all(needed_gib(way.of(config), dims) > SAFE * memory_gib for way in before)


def test_what_is_set_stays() -> None:
    config = load_config("gpt2-large", ["engine.zero_stage=3", "batch.tokens_per_micro_batch=3072"])
    chosen, _ = choose(config, LARGE, 80.0)
    assert came_to(chosen) == (3, False, 3072)
    offloaded = load_config("gpt2-large", ["engine.offload_params=true"])
    assert choose(offloaded, LARGE, 80.0)[0].engine.stage == 3
    padded = load_config("gpt2-large", ["batch.packing=false", "batch.micro_batch_size=4"])
    chosen, why = choose(padded, LARGE, 80.0)
    assert (chosen.engine.stage, chosen.batch.tokens_per_micro_batch) == (1, None)
    assert "packs" not in why


def test_a_pack_is_no_larger_than_a_workers_share_of_a_step() -> None:
    config = load_config("gpt2-large", ["batch.global_batch_size=16", "scaling.workers=2"])
    assert choose(config, LARGE, 80.0)[0].batch.pack_tokens == 8 * 512
    one = load_config("gpt2-large", ["batch.global_batch_size=1", "batch.seq_len=1000"])
    assert choose(one, LARGE, 80.0)[0].batch.pack_tokens == 1000


def test_where_nothing_fits_what_needs_least_is_taken_and_told() -> None:
    chosen, why = choose(load_config("gpt2-xl"), dims_of(load_config("gpt2-xl")), 8.0)
    assert came_to(chosen)[1:] == (True, 512)
    assert why.endswith("of 8.0 GiB a worker, more than is safe: see what fits by estimate")


def test_a_model_of_another_kind_is_treated_with_caution() -> None:
    chosen, why = choose(load_config("gpt2-large"), None, 80.0)
    assert came_to(chosen) == (3, True, 512)
    assert "a model of another kind" in why


def test_estimate_tells_what_auto_comes_to() -> None:
    facts = estimate(load_config("gpt2-large"), device="a100")
    assert facts["auto"].startswith("ZeRO-1, packs of 8,192 tokens, no activation checkpointing =")
    assert facts["chosen"] == "ZeRO-1"
    assert estimate(load_config("gpt2-large", ["batch.seq_len=256"]))["micro_batch_tokens"] == 16384


def test_a_run_keeps_its_choice_and_goes_on_with_it(tmp_path: Path, monkeypatch: Any) -> None:
    config = load_config("gpt2-tiny-cpu", [*AUTO, "run.name=x"])
    template = load_template(config)
    hf_config = load_model_config(config, template)
    spec = {"verb": "train", "config": config.model_dump(mode="json"), "stamp": {"a": 1}}
    rundir.write_run(tmp_path, spec)
    told: list[Event] = []
    chosen = settle.settled(config, hf_config, tmp_path, told.append)
    assert came_to(chosen) == (1, False, 2048)
    (event,) = told
    assert isinstance(event, events.Chosen)
    assert event.message.endswith("(CPU)")
    kept = json.loads((tmp_path / rundir.RUN).read_text())
    assert kept["config"] == chosen.model_dump(mode="json")
    assert kept["stamp"] == {"a": 1}
    assert kept["chosen"] == {
        "engine.zero_stage": 1,
        "model.activation_checkpointing": False,
        "batch.tokens_per_micro_batch": 2048,
    }
    # On another machine, which would choose otherwise.
    monkeypatch.setattr(choosing, "SAFE", 0.0)
    before = settle.chosen_before(tmp_path)
    assert settle.as_chosen(config, before) == chosen
    other = load_config("gpt2-tiny-cpu", [*AUTO[1:], "engine.zero_stage=2", "run.name=x"])
    assert settle.as_chosen(other, before).engine.stage == 2
    assert settle.chosen_before(tmp_path / "nothing") == {}
