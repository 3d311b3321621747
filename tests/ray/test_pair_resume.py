"""Runs of pairs that go on: with as many workers to the bit, with another number nearly."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysft.runs import rundir, snapshot
from raysft.runs.events import Event, Started, Status
from raysft.train.objectives.dpo import dpo
from raysft.train.objectives.reward import reward
from tests.ray.conftest import fit_in, steps_of, tiny_config
from tests.ray.pair_reference import write_pairs

SETTINGS = ("run.max_steps=4", "checkpoint.every_steps=2", "eval.every_steps=2", "optim.lr=2e-4")


def settings(tiny_model: Path, workers: int, name: str) -> tuple[Any, Any]:
    path = write_pairs(tiny_model.parent / "records.json")
    sets = (f"data.path={path}", f"scaling.workers={workers}", "batch.tokens_per_micro_batch=256")
    config = tiny_config(tiny_model, *sets, *SETTINGS)
    return config, dpo(config.dpo) if name == "dpo" else reward(config.reward_model)


@pytest.fixture(scope="module", params=["dpo", "reward"])
def undisturbed(
    request: pytest.FixtureRequest,
    cluster: None,  # noqa: ARG001
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path, list[Event]]:
    """Its objective, a run directory without the last of its checkpoints, and what it said."""
    folder = tmp_path_factory.mktemp(request.param)
    config, objective = settings(tiny_model, 2, request.param)
    _, events, _ = fit_in(folder, config, objective=objective)
    shutil.rmtree(folder / rundir.MODEL)
    newest = snapshot.checkpoints_by_step(folder)[4]
    (newest / "manifest_0.json").unlink()  # as damaged: the run goes on from step 2
    return request.param, folder, events


def numbers(events: list[Event], keys: tuple[str, ...]) -> list[list[float]]:
    return [[step[key] for key in keys] for step in steps_of(events) if step["step"] > 2]


@pytest.mark.parametrize("workers", [2, 1])
def test_it_goes_on_as_if_nothing_had_happened(
    undisturbed: tuple[str, Path, list[Event]], tiny_model: Path, tmp_path: Path, workers: int
) -> None:
    name, folder, events = undisturbed
    again = shutil.copytree(folder, tmp_path / "again")
    before = None
    if name == "dpo":
        with np.load(again / rundir.REFERENCE) as stored:
            before = stored["train"]
        if workers == 1:  # lost: computed again, by the model that the run has started from
            (again / rundir.REFERENCE).unlink()
    config, objective = settings(tiny_model, workers, name)
    _, said, _ = fit_in(again, config, objective=objective)
    assert [event.step for event in said if isinstance(event, Started)] == [2]
    keys = ("loss", "grad_norm", "accuracy", "reward_margin")
    found, wanted = numbers(said, keys), numbers(events, keys)
    if workers == 2:
        assert found == wanted
    else:
        assert found == [pytest.approx(row, abs=1e-3) for row in wanted]
    computes = [e for e in said if isinstance(e, Status) and "reference" in e.message]
    assert bool(computes) == (name == "dpo" and workers == 1)
    if name == "dpo":
        with np.load(again / rundir.REFERENCE) as stored:
            assert stored["train"] == pytest.approx(before, abs=1e-4)
