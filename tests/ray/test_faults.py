"""Damaged checkpoints, and losses that are no numbers: nothing is lost and nothing hidden."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from raysft.errors import NotFinite, RunError
from raysft.runs import snapshot
from raysft.runs.events import Event, Started, Warning, Workers
from raysft.train.checkpoint.export import read_weights
from raysft.train.checkpoint.integrity import damage
from tests.ray.conftest import fit_in, steps_of, tiny_config

SETTINGS = (
    "scaling.workers=2",
    "run.max_steps=6",
    "checkpoint.every_steps=2",
    "eval.every_steps=2",
)


@pytest.fixture(scope="module")
def undisturbed(
    cluster: None,  # noqa: ARG001
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[Event]]:
    """A run directory with the checkpoints of steps 4 and 6, and what the run said."""
    folder = tmp_path_factory.mktemp("whole")
    _, events, _ = fit_in(folder, tiny_config(tiny_model, *SETTINGS))
    return folder, events


def numbers(events: list[Event], after: int) -> list[tuple[Any, ...]]:
    """What must not change by a hair: losses and norms of the steps after one."""
    keys = ("step", "loss", "grad_norm", "eval_loss")
    return [tuple(e.get(k) for k in keys) for e in steps_of(events) if e["step"] > after]


def shard(checkpoint: Path, words: str) -> Path:
    return next(path for path in sorted(checkpoint.rglob("*")) if words in path.name)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "one bit of the second worker's optimizer": ("rank_1_mp_rank_00_optim", flip, "other content"),
    "half of the first worker's weights": ("rank_0_mp_rank_00_model", halve, "bytes, and had"),
    "a manifest": ("manifest_1.json", Path.unlink, "1 of 2 manifests are missing"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    undisturbed: tuple[Path, list[Event]], tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    folder, events = undisturbed
    words, spoil, told = DAMAGES[kind]
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    newest = snapshot.checkpoints_by_step(again)[6]
    assert damage(newest) is None
    spoil(shard(newest, words))
    assert told in str(damage(newest))
    _, said, _ = fit_in(again, tiny_config(tiny_model, *SETTINGS))
    warnings = [event.message for event in said if isinstance(event, Warning)]
    assert len(warnings) == 1
    assert f"{newest} is damaged" in warnings[0]
    assert told in warnings[0]
    assert next(event.step for event in said if isinstance(event, Started)) == 4
    assert numbers(said, after=4) == numbers(events, after=4)


def test_a_run_goes_on_with_fewer_workers(
    undisturbed: tuple[Path, list[Event]], tiny_model: Path, tmp_path: Path
) -> None:
    """From step 4, because the newest checkpoint is damaged."""
    folder, events = undisturbed
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    flip(shard(snapshot.checkpoints_by_step(again)[6], "rank_0_mp_rank_00_optim"))
    _, said, _ = fit_in(again, tiny_config(tiny_model, *SETTINGS, "scaling.workers=1"))
    assert next(event.step for event in said if isinstance(event, Started)) == 4
    for found, wanted in zip(numbers(said, after=4), numbers(events, after=4), strict=True):
        assert [x for x in found if x] == pytest.approx([x for x in wanted if x], rel=1e-5)
    assert not list((again / "checkpoints").glob("*.universal"))


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (("zero_stage=1", "workers=2"), ("zero_stage=3", "workers=1")),
        (("zero_stage=0", "workers=1"), ("zero_stage=2", "workers=2")),
    ],
)
def test_a_run_goes_on_under_other_zero_stages(
    undisturbed: tuple[Path, list[Event]],
    tiny_model: Path,
    tmp_path: Path,
    there: tuple[str, str],
    back: tuple[str, str],
) -> None:
    """Saved under stage 3 at step 4, then under another at step 5, each with its workers."""
    folder, events = undisturbed
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    names = read_weights(snapshot.checkpoints(folder)[-1]).keys()
    for step, (stage, workers) in ((4, there), (5, back)):
        flip(snapshot.checkpoints_by_step(again)[6] / "rng_0.pt")
        settings = (f"engine.{stage}", f"scaling.{workers}", "checkpoint.every_steps=1")
        _, said, _ = fit_in(again, tiny_config(tiny_model, *SETTINGS, *settings))
        assert next(event.step for event in said if isinstance(event, Started)) == step
        for found, wanted in zip(numbers(said, step), numbers(events, step), strict=True):
            assert [x for x in found if x] == pytest.approx([x for x in wanted if x], rel=1e-5)
        # An export finds the stage of a checkpoint in its files.
        assert read_weights(snapshot.checkpoints(again)[-1]).keys() == names
    assert not list((again / "checkpoints").glob("*.universal"))


def test_a_checkpoint_that_computes_something_else_is_refused(
    undisturbed: tuple[Path, list[Event]], tiny_model: Path, tmp_path: Path
) -> None:
    """The files are what their manifest says, and the weights are not those that were saved."""
    again = tmp_path / "again"
    shutil.copytree(undisturbed[0], again)
    newest = snapshot.checkpoints_by_step(again)[6]
    path = shard(newest, "rank_0_mp_rank_00_optim")
    state = torch.load(path, weights_only=False)
    for group in state["optimizer_state_dict"]["fp32_flat_groups"]:
        group.data.mul_(1.5)
    torch.save(state, path)
    for manifest in newest.glob("manifest_*.json"):
        manifest.write_text(json.dumps({"world_size": 2, "files": {}}))
    with pytest.raises(RunError, match="is not the model that was saved: a stored batch"):
        fit_in(again, tiny_config(tiny_model, *SETTINGS))


@pytest.mark.usefixtures("cluster")
def test_a_loss_that_is_no_number_names_its_step_and_records(
    tiny_model: Path, tmp_path: Path
) -> None:
    """In fp32 the second step at such a rate has weights beyond the numbers."""
    settings = ("optim.lr=1e30", "optim.max_grad_norm=0.0", "schedule.warmup_steps=0")
    config = tiny_config(tiny_model, *SETTINGS, *settings, "log.every_steps=3")
    with pytest.raises(NotFinite) as caught:
        fit_in(tmp_path, config)
    assert caught.value.step == 2  # and not the log step, which is 3
    assert "at step 2: lower optim.lr" in str(caught.value)
    assert "Training records of that step: " in str(caught.value)


def test_a_run_starts_with_as_many_workers_as_there_is_room_for(
    undisturbed: tuple[Path, list[Event]], tiny_model: Path, tmp_path: Path
) -> None:
    """Two of two to four, on two CPUs: the numbers of two."""
    wanted = undisturbed[1]
    config = tiny_config(tiny_model, *SETTINGS, "scaling.workers=[2, 4]")
    spare = int(ray.cluster_resources()["CPU"]) - 2
    held = placement_group([{"CPU": spare}]) if spare > 0 else None
    try:
        if held is not None:
            ray.get(held.ready(), timeout=60)  # the workers of the test before may still be ending
        _, said, _ = fit_in(tmp_path, config)
    finally:
        if held is not None:
            remove_placement_group(held)
    told = [event.message for event in said if isinstance(event, Warning)]
    assert told == ["room for 2 of 4 workers: going on with 2"]
    assert next(event.world_size for event in said if isinstance(event, Workers)) == 2
    assert numbers(said, after=0) == numbers(wanted, after=0)
