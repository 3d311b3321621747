"""Gradients as studies measure them: against plain PyTorch, and equal however they are split."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from raysft.config.schema import Config
from raysft.data.dataset import Prepared
from raysft.runs.events import Event, Metrics
from raysft.studies.grad_variance.measure import objective_for
from raysft.studies.masking import measure as masking
from raysft.studies.seq_len.sequences import joined
from tests.ray.conftest import Groups, steps_of, tiny_config

LENGTHS, EXAMPLES, SIZE = (24, 48), 8, 2
SETTINGS = (
    f"bench.seq_lens={list(LENGTHS)}", f"bench.examples={EXAMPLES}", f"bench.shard_size={SIZE}",
    "run.max_steps=2", "optim.max_grad_norm=0.01",  # clips, which must not be seen
)  # fmt: skip


def measured(events: list[Event], step: int) -> dict[str, float]:
    lines = [event for event in events if isinstance(event, Metrics) and event.step == step]
    (found,) = [line.values for line in lines if "eval_loss" in line.values]
    return {key: float(value) for key, value in found.items() if "/" in key and value is not None}


def run(
    groups: Groups, folder: Path, tiny_model: Path, *overrides: str
) -> tuple[list[Event], Prepared, Config]:
    config = tiny_config(tiny_model, *SETTINGS, *overrides)
    _, events, data = groups.fit_in(folder, config, objective_for(config))
    return events, data, config


@pytest.fixture(scope="module")
def by_hand(tiny_model: Path) -> dict[str, float]:
    """By autograd on the model itself, a sequence at a time."""
    from raysft.data.dataset import prepare
    from raysft.model.load import load_template

    config = tiny_config(tiny_model, *SETTINGS)
    data = prepare(config, load_template(config))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    found: dict[str, float] = {}
    for length in LENGTHS:
        rows = joined(data.train, length, EXAMPLES, config.run.seed)
        sums: list[torch.Tensor] = []
        counts: list[int] = []
        for index in range(EXAMPLES):
            ids = torch.from_numpy(rows.tokens(index)).long()[None]
            mask = torch.from_numpy(rows.mask(index))[1:]
            nll = -model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            grads = torch.autograd.grad(nll[mask].sum(), list(model.parameters()))
            sums.append(torch.cat([grad.flatten() for grad in grads]).double())
            counts.append(int(mask.sum()))
        pairs = [
            (sums[i] + sums[i + 1], counts[i] + counts[i + 1]) for i in range(0, EXAMPLES, SIZE)
        ]
        for name, shards in (
            ("summed", [total / SIZE for total, _ in pairs]),
            ("mean", [total / count for total, count in pairs]),
        ):
            key = f"{length}/{name}"
            found[f"{key}/mean_square"] = float(torch.stack([s @ s for s in shards]).mean())
            mean = torch.stack(shards).mean(0)
            found[f"{key}/square_of_mean"] = float(mean @ mean)
    return found


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_moments_equal_plain_pytorch(
    groups: Groups,
    tmp_path: Path,
    tiny_model: Path,
    by_hand: dict[str, float],
    stage: int,
    workers: int,
) -> None:
    options = (f"scaling.workers={workers}", f"engine.zero_stage={stage}")
    events, _, _ = run(groups, tmp_path, tiny_model, *options)
    found = measured(events, step=0)
    assert {key for key in found if not key.endswith("/loss")} == by_hand.keys()
    for key, value in by_hand.items():
        assert found[key] == pytest.approx(value, rel=1e-4), key
    assert measured(events, step=2)["48/loss"] < found["48/loss"]


def test_measuring_changes_no_step(groups: Groups, tmp_path: Path, tiny_model: Path) -> None:
    """The same run with and without it has the same losses, to the bit."""
    options = (*SETTINGS, "scaling.workers=1", "run.max_steps=3", "eval.every_steps=1")
    config = tiny_config(tiny_model, *options)
    _, watched, _ = groups.fit_in(tmp_path / "a", config, objective_for(config))
    _, plain, _ = groups.fit_in(tmp_path / "b", config)

    def steps(events: list[Event]) -> list[Any]:
        return [(line["loss"], line["grad_norm"]) for line in steps_of(events)]

    assert steps(watched) == steps(plain)


@pytest.mark.parametrize(
    ("workers", "stage", "packing"), [(1, 0, "true"), (1, 1, "false"), (2, 3, "true")]
)
def test_gradients_of_prompts_and_answers_equal_plain_pytorch(
    groups: Groups, tmp_path: Path, tiny_model: Path, workers: int, stage: int, packing: str
) -> None:
    """Their norms and inner product, of all held-out records."""
    config = tiny_config(
        tiny_model, f"scaling.workers={workers}", f"engine.zero_stage={stage}",
        f"batch.packing={packing}", "run.max_steps=1", "optim.max_grad_norm=0.01",
    )  # fmt: skip
    _, events, data = groups.fit_in(tmp_path, config, masking.objective_for(config))
    lines = [event.values for event in events if isinstance(event, Metrics) and not event.step]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    sums, tokens = torch.zeros(2), 0
    for index in range(len(data.heldout)):
        ids = torch.from_numpy(data.heldout.tokens(index)).long()[None]
        mask = torch.from_numpy(data.heldout.mask(index))[1:]
        nll = -model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        sums = sums + torch.stack([nll[mask].sum(), nll[~mask].sum()])
        tokens += len(mask)
    parameters = list(model.parameters())
    grads = [torch.autograd.grad(s / tokens, parameters, retain_graph=True) for s in sums]
    answers, prompts = (torch.cat([part.flatten() for part in grad]) for grad in grads)
    assert lines[0]["answer_square"] == pytest.approx(float(answers @ answers), rel=1e-4)
    assert lines[0]["prompt_square"] == pytest.approx(float(prompts @ prompts), rel=1e-4)
    assert lines[0]["product"] == pytest.approx(float(answers @ prompts), rel=1e-3)
