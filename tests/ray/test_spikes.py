"""Steps of a far larger gradient: skipped, told, counted, and as if they had not been."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from raysft.data import demo
from raysft.runs import snapshot
from raysft.runs.events import Event, Started, Warning
from raysft.runtime.fit import RunResult
from tests.ray.conftest import fit_in, steps_of, tiny_config
from tests.ray.reference import reference
from tests.ray.test_faults import flip, numbers, shard

pytestmark = pytest.mark.usefixtures("cluster")

STEPS, TIMES = 20, 5.0
# Their records have a damaged answer, which gives 14 times the usual gradient, or more.
DAMAGED = (17, 19, 20)
SAVED = 18  # and after the last step: between these two all is skipped

STAGES = {
    "stage 0": ["engine.zero_stage=0"],
    "stage 1": ["engine.zero_stage=1"],
    "stage 2, offloaded": ["engine.zero_stage=2", "engine.offload_optimizer=true"],
    "stage 3": ["engine.zero_stage=3"],
}


class Run(NamedTuple):
    folder: Path
    result: RunResult
    events: list[Event]
    settings: list[str]


@pytest.fixture(scope="module")
def order() -> list[list[int]]:
    """Indices of the records of each step, as the sampler draws them."""
    return np.random.default_rng([0, 0]).permutation(4 * STEPS).reshape(STEPS, 4).tolist()


@pytest.fixture(scope="module")
def records(order: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = demo.generate(4 * STEPS, seed=6)
    for step in DAMAGED:
        for index in order[step - 1]:
            found[index]["output"] = "q" * 60
    path = tmp_path_factory.mktemp("damaged") / "records.json"
    path.write_text(json.dumps(found))
    return path


@pytest.fixture(scope="module", params=STAGES)
def run(
    tiny_model: Path,
    records: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Run]:
    """Two workers, each with two micro-batches in a step."""
    folder = tmp_path_factory.mktemp("run")
    settings = [
        "scaling.workers=2",
        "batch.packing=false",
        "batch.micro_batch_size=1",
        "batch.global_batch_size=4",
        f"data.path={records}",
        "data.eval_fraction=0",
        f"run.max_steps={STEPS}",
        f"optim.skip_spikes={TIMES}",
        f"checkpoint.every_steps={SAVED}",
        *STAGES[request.param],
    ]
    result, events, _ = fit_in(folder, tiny_config(tiny_model, *settings))
    yield Run(folder, result, events, settings)
    shutil.rmtree(folder)


def warnings_of(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warning)]


@pytest.fixture(scope="module")
def expected(tiny_model: Path, records: Path, order: list[list[int]]) -> Any:
    return reference(tiny_model, order, json.loads(records.read_text()), TIMES)


def test_losses_and_norms_equal_plain_pytorch_that_skips_the_same_steps(
    run: Run, expected: Any
) -> None:
    losses, norms, skipped = expected
    assert skipped == list(DAMAGED)
    steps = steps_of(run.events)
    # Not as close as in test_parity: there are four times as many steps for rounding to grow in.
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=2e-3)
    assert [step["grad_norm"] for step in steps] == pytest.approx(norms, rel=2e-2)
    assert [step["step"] for step in steps if step["spikes_skipped"]] == skipped
    assert not any(step["skipped_steps"] for step in steps)  # those are fp16's

    totals = run.result.totals
    assert totals["spikes_skipped"] == len(skipped)
    assert totals["applied_steps"] == STEPS - len(skipped)
    rates = [step["lr"] for step in steps]
    assert [step for step in range(1, STEPS) if rates[step] == rates[step - 1]] == [17, 19]
    assert "recent_norms" not in totals
    told = warnings_of(run.events)
    assert len(told) == len(skipped)
    for step, words in zip(skipped, told, strict=True):
        pattern = (
            rf"step {step}: gradient norm (\S+) is beyond 5 x the median (\S+): the update was"
        )
        found = re.match(pattern, words)
        assert found, words
        wanted = (norms[step - 1], np.median(norms[: step - 1]))
        assert tuple(map(float, found.groups())) == pytest.approx(wanted, rel=2e-2)


def state_after(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor and step counter of weights and optimizer that a checkpoint holds, by name."""
    found: dict[str, torch.Tensor] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, dict | list | tuple):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                collect(f"{name}/{key}", inner)
        elif torch.is_tensor(value) or name.endswith("/step"):
            found[name] = torch.as_tensor(value)

    for path in sorted((snapshot.checkpoints_by_step(folder)[step] / "state").glob("*.pt")):
        content = torch.load(path, weights_only=False)
        for key in ("module", "optimizer", "optimizer_state_dict"):
            collect(f"{path.name}/{key}", content.get(key))
    return found


def test_skipped_steps_change_no_bit_of_weights_moments_and_counters(run: Run) -> None:
    before, after = state_after(run.folder, SAVED), state_after(run.folder, STEPS)
    for kind in ("/module/", "/exp_avg", "/exp_avg_sq"):
        assert any(kind in name for name in before)
    assert {int(before[name]) for name in before if name.endswith("/step")} == {SAVED - 1}
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("run", ["stage 3"], indirect=True)
def test_a_resumed_run_skips_the_same_steps(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    """The checkpoint holds the norms that those of the last two steps are held against."""
    again = tmp_path / "again"
    shutil.copytree(run.folder, again)
    flip(shard(snapshot.checkpoints_by_step(again)[STEPS], "rank_1_mp_rank_00_optim"))
    result, events, _ = fit_in(again, tiny_config(tiny_model, *run.settings))
    assert next(event.step for event in events if isinstance(event, Started)) == SAVED
    assert numbers(events, after=SAVED) == numbers(run.events, after=SAVED)
    assert result.totals["spikes_skipped"] == len(DAMAGED)
    assert warnings_of(events)[1:] == warnings_of(run.events)[1:]  # the first is of the damage
