"""Policy gradients on Ray and DeepSpeed: they reach what is known to be the optimum, draw the same
answers over any number of workers, and go on to the bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from raysft.config.load import load_config
from raysft.config.schema import Config
from raysft.runs import rundir, snapshot
from raysft.runs.events import Event, Started
from raysft.train.objectives.ppo import ppo
from tests.ray.conftest import Groups, fit_in, steps_of, tiny_config
from tests.ray.spoken import overrides, spoken, worth, write_language
from tests.unit.language import optimum, total_variation

BETA = 0.5
VOWELS = """
def vowels(prompt, answer, reference):
    return sum(letter in "aeiou" for letter in answer) / 10
"""


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language(tmp_path_factory.mktemp("language"))


def language_config(language: Path, workers: int, stage: int, *sets: str) -> Config:
    """512 answers to each of the two prompts in an iteration."""
    return load_config("gpt2-tiny-cpu", [
        *overrides(language), f"scaling.workers={workers}", f"engine.zero_stage={stage}",
        "batch.packing=false", f"batch.micro_batch_size={1024 // workers}",
        "batch.global_batch_size=1024", "ppo.group=512", "ppo.prompts_at_once=1",
        f"ppo.beta={BETA}", "log.every_steps=25", "run.max_steps=300", "optim.lr=5e-3",
        "schedule.warmup_steps=10", "schedule.min_lr_ratio=0.05", *sets,
    ])  # fmt: skip


LAYOUTS = [
    ("group", 1, 1), ("critic", 1, 3), ("group", 2, 3), ("critic", 2, 1),
]  # fmt: skip


@pytest.mark.parametrize(("advantage", "workers", "stage"), LAYOUTS)
def test_the_optimum_is_reached(
    language: Path, tmp_path: Path, groups: Groups, advantage: str, workers: int, stage: int
) -> None:
    config = language_config(language, workers, stage, f"ppo.advantage={advantage}")
    _, events, _ = groups.fit_in(tmp_path, config, ppo(config.ppo))
    reference = spoken(language / "model")
    best = optimum(reference, worth(), BETA)
    assert total_variation(reference, best) > 0.5
    assert total_variation(spoken(tmp_path / rundir.MODEL), best) < 0.03
    first = steps_of(events)[0]
    assert first["update_kl"] == first["clip_fraction"] == 0.0


def small(tiny_model: Path, workers: int, *sets: str) -> Config:
    """Answers of up to 24 tokens to the tiny records, by a model that knows nothing."""
    (tiny_model.parent / "mine.py").write_text(VOWELS)
    return tiny_config(
        tiny_model, f"scaling.workers={workers}", "batch.global_batch_size=16", "ppo.group=4",
        "ppo.max_new_tokens=24", f"ppo.reward={tiny_model.parent / 'mine.py'}:vowels",
        "ppo.prompts_at_once=1", "batch.tokens_per_micro_batch=256", "ppo.missing_eos=0.1",
        "run.max_steps=4", "optim.lr=1e-3", *sets,
    )  # fmt: skip


DRAWN = ("reward", "entropy", "answer_tokens", "ended")


@pytest.mark.parametrize("stage", [1, 3])
def test_answers_are_the_same_over_any_number_of_workers(
    tiny_model: Path, tmp_path: Path, groups: Groups, stage: int
) -> None:
    """To the bit before the first step, and as far as rounding goes after it. Trap 25: each rank
    draws for prompts of its own until they have ended, then all train, over and over."""
    found = []
    for workers in (1, 2):
        config = small(tiny_model, workers, f"engine.zero_stage={stage}")
        _, events, _ = groups.fit_in(tmp_path / str(workers), config, ppo(config.ppo))
        steps = steps_of(events)
        assert [step["step"] for step in steps] == [1, 2, 3, 4]
        assert steps[0]["update_kl"] == steps[0]["clip_fraction"] == 0.0  # trap 20
        assert steps[0]["kl_to_reference"] == pytest.approx(0, abs=1e-5)
        assert all(step["drawing_gap"] < 1e-3 for step in steps)  # trap 19
        found.append(steps)
    one, two = found
    assert [one[0][key] for key in DRAWN] == [two[0][key] for key in DRAWN]
    for a, b in zip(one, two, strict=True):
        for key in (*DRAWN, "loss", "grad_norm", "kl_to_reference"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-4), (key, a["step"])


@pytest.fixture(scope="module", params=["group", "critic"])
def undisturbed(
    request: pytest.FixtureRequest,
    cluster: None,  # noqa: ARG001
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Config, Path, list[Event]]:
    """A run of three iterations of two steps, with a checkpoint that was asked for after each
    step, and its folder without the last of them."""
    folder = tmp_path_factory.mktemp(request.param)
    config = small(
        tiny_model, 2, f"ppo.advantage={request.param}", "ppo.minibatches=2", "run.max_steps=6",
        "checkpoint.every_steps=1", "checkpoint.keep=9", "scaling.max_failures=0",
    )  # fmt: skip
    _, events, _ = fit_in(folder, config, objective=ppo(config.ppo))
    assert sorted(snapshot.checkpoints_by_step(folder)) == [2, 4, 6]  # between iterations only
    return config, folder, events


def test_it_goes_on_to_the_bit(
    undisturbed: tuple[Config, Path, list[Event]], tmp_path: Path
) -> None:
    config, folder, events = undisturbed
    again = shutil.copytree(folder, tmp_path / "again")
    shutil.rmtree(again / rundir.MODEL)
    for step in (4, 6):
        (snapshot.checkpoints_by_step(again)[step] / "manifest_0.json").unlink()  # as damaged
    _, said, _ = fit_in(again, config, objective=ppo(config.ppo))
    assert [event.step for event in said if isinstance(event, Started)] == [2]

    def numbers(some: list[Event]) -> Any:
        kept = (*DRAWN, "loss", "grad_norm", "kl_to_reference", "update_kl")
        return [[step[key] for key in kept] for step in steps_of(some) if step["step"] > 2]

    assert numbers(said) == numbers(events)
    assert len(numbers(said)) == 4
    one, other = (
        AutoModelForCausalLM.from_pretrained(run / rundir.MODEL).state_dict()
        for run in (folder, again)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    if config.ppo.advantage == "critic":
        assert all(abs(step["explained_variance"]) > 0 for step in steps_of(events))
