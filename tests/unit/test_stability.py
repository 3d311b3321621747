"""Curves, largest stable rates and report of `bench stability`, of results whose truth is known."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.runs import events, rundir
from raysft.studies.page import markdown
from raysft.studies.points import Ended, together
from raysft.studies.stability.curves import BEFORE, around, facts_of, spikes
from raysft.studies.stability.report import PAGE, PLOT, STUDY
from raysft.studies.stability.rows import (
    around_spikes,
    for_each_seed,
    mean_cost,
    ratio_before,
    rows_of,
)
from raysft.studies.stability.run import (
    Ladders,
    check,
    evaluated_after,
    point_config,
    points,
)
from raysft.studies.stability.thresholds import (
    Bracket,
    bracket,
    cost,
    effect,
    gain,
    threshold,
    values_of,
)
from raysft.studies.stability.words import of_case, verdict
from raysft.train.second_moment import watch_moments

PRESET = "bench-stability"

# Synthetic runs: a loss for every step.
FALLING = [6.0 * 0.95**step for step in range(60)]
SPIKING = [loss * (3.0 if step in (30, 31, 50) else 1.0) for step, loss in enumerate(FALLING)]
RISING = [1.0 * 1.2**step for step in range(30)]


def lines(
    losses: Sequence[float], ratios: Sequence[float | None] | None = None, clipped: int = 0
) -> list[dict[str, Any]]:
    """As a run that logs every step gives them: evaluated before training and after the end."""
    ratios = ratios or [1.0] * len(losses)
    steps = [
        {"step": number, "loss": loss, "moment_ratio": ratio, "clipped_steps": number <= clipped,
         "skipped_steps": 0}
        for number, (loss, ratio) in enumerate(zip(losses, ratios, strict=True), start=1)
    ]  # fmt: skip
    steps[-1]["eval_loss"] = losses[-1]
    return [{"step": 0, "eval_loss": 6.0}, *steps]


def test_spikes_of_curves_whose_truth_is_known() -> None:
    assert spikes(FALLING) == []
    assert [spike.step for spike in spikes(SPIKING)] == [31, 51]  # two in a row are one
    first = spikes(SPIKING)[0]
    assert first.loss == pytest.approx(3 * FALLING[30])
    assert first.before == pytest.approx(math.sqrt(FALLING[24] * FALLING[25]), rel=1e-2)
    # A loss that only rises is beyond 1.5 times the median from the fifth step on, and is a new
    # spike each time that the window is over.
    assert [spike.step for spike in spikes(RISING)] == [5, 16, 27]
    assert spikes([6.0, 14.0, 13.0, 6.0])[0].step == 2


def test_the_second_moment_is_looked_up_around_a_spike() -> None:
    ratios: list[float | None] = [1.0] * 60
    ratios[27] = 2.5  # of step 28
    assert around(ratios, 31) == [1.0] * 5 + [2.5] + [1.0] * 5
    assert around(ratios, 2)[:8] == [None] * 7 + [1.0]
    facts = facts_of(lines(SPIKING, ratios, clipped=12))
    assert (facts["steps"], facts["clipped_steps"], facts["skipped_steps"]) == (60, 12, 0)
    assert facts["eval_loss"] == FALLING[-1]
    assert facts["moment_ratio_p50"] == 1.0
    assert facts["spikes"][0]["moment_ratios"][5] == 2.5


def test_updates_that_were_skipped_tell_nothing() -> None:
    facts = facts_of(lines([6.0, 5.0], [None, None]))
    assert (facts["moment_ratio_p50"], facts["spikes"]) == (None, [])
    nothing = facts_of([{"step": 0, "eval_loss": 6.0}])
    assert (nothing["steps"], nothing["moment_ratio_p99"], nothing["eval_loss"]) == (0, None, 6.0)


LADDER = (0.01, 0.1, 1.0)


def run_at(lr: float, *, diverged: bool, loss: float = 1.0, spike: bool = False) -> dict[str, Any]:
    ratios: list[float | None] = [1.0] * 60
    if spike:
        ratios[27] = 2.5
    facts = facts_of(lines(SPIKING if spike else FALLING, ratios, clipped=15))
    return {"lr": lr, "diverged": diverged, **facts, "eval_loss": loss}


def ladder(held: int, losses: Sequence[float] = (1.0, 0.5, 2.0)) -> list[dict[str, Any]]:
    """The first `held` rates are stable, and the next one is the last."""
    return [
        run_at(lr, diverged=place == held, loss=losses[place], spike=place == held)
        for place, lr in enumerate(LADDER[: held + 1])
    ]


def case(
    seed: int, runs: list[dict[str, Any]], warmup: float = 0.0, clip: float = 0.0, to: str = "fp32"
) -> dict[str, Any]:
    return {
        "warmup_ratio": warmup, "max_grad_norm": clip, "precision": to, "seed": seed,
        "status": "done", "error": None, "runs": runs, "total_steps": 60, "observed": None,
    }  # fmt: skip


def results(*cases: dict[str, Any]) -> dict[str, Any]:
    config = load_config(PRESET, [f"bench.lrs={list(LADDER)}"])
    return {
        "study": "stability", "stamp": {"command": "raysft bench stability x"},
        "config": config.model_dump(mode="json"), "cases": list(cases),
    }  # fmt: skip


def test_a_ladder_is_a_bracket() -> None:
    assert bracket(ladder(2)) == Bracket(0.1, 1.0)
    assert bracket(ladder(0)) == Bracket(None, 0.01)
    assert bracket(ladder(3)) == Bracket(1.0, None)
    assert bracket(list(reversed(ladder(2)))) == Bracket(0.1, 1.0)


def test_the_interval_of_the_largest_stable_rate_by_hand() -> None:
    alike = threshold([Bracket(0.1, 1.0)] * 3)
    assert (alike.low, alike.high) == pytest.approx((0.1, 1.0))
    assert alike.words() == "0.1 to 1"
    one = threshold([Bracket(0.1, 1.0)])
    assert (one.low, one.high) == pytest.approx((0.1, 1.0))
    # Base-10 logarithms of the rates that held: -2, -1, -1. Their mean is -4/3, their deviation
    # 1/sqrt(3), and Student's t of 2 degrees of freedom 4.303.
    spread = threshold([Bracket(0.01, 0.1), Bracket(0.1, 1.0), Bracket(0.1, 1.0)])
    half = 4.303 / 3**0.5 / 3**0.5
    assert spread.stable == pytest.approx(10 ** (-4 / 3))
    assert spread.low == pytest.approx(10 ** (-4 / 3 - half), rel=1e-3)
    assert spread.high == pytest.approx(10 ** (-1 / 3 + half), rel=1e-3)
    none_diverged = threshold([Bracket(0.1, 1.0), Bracket(1.0, None)])
    assert none_diverged.high is None
    assert none_diverged.words().endswith("or more")
    none_held = threshold([Bracket(None, 0.01), Bracket(None, 0.01)])
    assert (none_held.stable, none_held.words()) == (None, "below 0.01")
    assert threshold([Bracket(None, 0.01), Bracket(1.0, None)]).words() == "not known"


def test_what_the_largest_stable_rate_costs() -> None:
    assert cost(case(0, ladder(3, losses=(1.0, 0.5, 2.0)))) == 1.5
    assert cost(case(0, ladder(1))) == 0.0
    assert cost(case(0, ladder(0))) is None
    found = results(*(case(seed, ladder(3, (1.0, 0.5, 2.0 + seed))) for seed in range(3)))
    mean = for_each_seed(found, mean_cost)
    assert mean is not None
    assert mean.mean == pytest.approx(2.5)
    assert mean.high == pytest.approx(2.5 + 4.303 / 3**0.5)


def study(warm: Sequence[int], cold: Sequence[int]) -> dict[str, Any]:
    """Ladders of seeds with and without warmup, by how many rates held; clipped and not."""
    return results(
        *(
            case(seed, ladder(held, (1.0, 0.5 - ratio, 2.0)), warmup=ratio, clip=clip)
            for ratio, listed in ((0.1, warm), (0.0, cold))
            for clip in (0.3, 0.0)
            for seed, held in enumerate(listed)
        )
    )


@pytest.mark.parametrize(
    ("warm", "cold", "times", "told"),
    [
        ((2, 2, 2), (1, 1, 1), 10.0, "that warmup allows larger rates is confirmed"),
        ((1, 1, 1), (2, 2, 2), 0.1, "is refuted, for it allows less"),
        ((2, 1, 2), (1, 2, 2), 1.0, "is not seen here"),
    ],
)
def test_effects_are_of_pairs_with_one_seed(
    warm: Sequence[int], cold: Sequence[int], times: float, told: str
) -> None:
    found = study(warm, cold)
    multiplied = effect(found, "warmup_ratio", 0.1)
    assert multiplied is not None
    assert multiplied.mean == pytest.approx(times)
    assert told in verdict(found)
    clipped = effect(found, "max_grad_norm", 0.3)
    assert clipped is not None
    assert (clipped.low, clipped.high) == pytest.approx((1.0, 1.0))
    assert "that clipping allows larger rates is not seen here" in verdict(found)


def test_what_a_value_gains_in_loss() -> None:
    found = gain(study((2, 2, 2), (2, 2, 2)), "warmup_ratio", 0.1)
    assert found is not None
    assert found.mean == pytest.approx(-0.1)
    told = "the held-out loss with 10% warmup differs by -0.100 (-0.100 to -0.100) nats a token"
    assert told in verdict(study((2, 2, 2), (2, 2, 2)))


def test_rows_by_hand() -> None:
    cold, warm = rows_of(
        results(*(case(seed, ladder(2), warmup) for warmup in (0.1, 0.0) for seed in range(2)))
    )
    assert (cold.warmup_ratio, warm.warmup_ratio) == (0.0, 0.1)
    assert cold.best_rate == pytest.approx(0.1)
    assert cold.best_loss is not None
    assert cold.best_loss.mean == 0.5
    assert cold.spikes == pytest.approx(2 / 3)  # two in one of three runs
    assert cold.clipped == pytest.approx(15 / 60)
    assert list(cold.at) == list(LADDER)
    last = cold.at[1.0]
    assert (last.runs, last.diverged, last.spikes, last.eval_loss) == (2, 2, 2.0, None)


def test_ladders_that_are_open_at_an_end_are_in_no_pair() -> None:
    """Of the second seed nothing diverged, so that only the first tells."""
    found = effect(study((2, 3), (1, 1)), "warmup_ratio", 0.1)
    assert found is not None
    assert (found.mean, found.runs) == (pytest.approx(10.0), 1)
    assert effect(study((3,), (3,)), "warmup_ratio", 0.1) is None


def test_the_first_value_is_the_plainest() -> None:
    found = results(
        *(case(0, ladder(2), w, c, p) for w, c, p in (
            (0.1, 0.3, "bf16"), (0.0, 1.0, "fp32"), (0.03, 0.0, "fp16")
        ))
    )  # fmt: skip
    assert values_of(found, "warmup_ratio") == [0.0, 0.03, 0.1]
    assert values_of(found, "max_grad_norm") == [0.0, 1.0, 0.3]
    assert values_of(found, "precision") == ["fp32", "bf16", "fp16"]


def test_the_reason_of_spikes() -> None:
    found = study((2, 2, 2), (1, 1, 1))
    ratio = for_each_seed(found, ratio_before)
    assert ratio is not None
    # Of the two spikes of a run that diverges, one has 2.5 among the eight before it.
    assert ratio.mean == pytest.approx((1.0 + (7 + 2.5) / BEFORE) / 2)
    assert "Of 24 loss spikes half came by step 31 of 60" in verdict(found)
    assert "were 1.09 (1.09 to 1.09) times" in verdict(found)
    assert "it had lagged behind" in verdict(found)
    near = around_spikes(found)
    assert near[5] is not None
    assert near[5].mean == pytest.approx((2.5 + 1.0) / 2)


def test_one_seed_judges_nothing(tmp_path: Path) -> None:
    found = study((2,), (1,))
    assert "that warmup allows larger rates is not judged by one seed" in verdict(found)
    assert "whether it had lagged behind is not judged by one seed" in verdict(found)
    STUDY.write_report(found, tmp_path)
    assert (tmp_path / PLOT).exists()
    assert "nothing to tell" in markdown(PAGE, results())


def test_a_report_of_all_there_can_be(tmp_path: Path) -> None:
    """Stable everywhere, nowhere, and no ladder at all."""
    failed = {"warmup_ratio": 0.0, "max_grad_norm": 0.3, "precision": "bf16", "seed": 2,
              "status": "failed", "error": "it died"}  # fmt: skip
    found = results(
        *(case(seed, ladder(3), 0.1, 1.0, "bf16") for seed in range(3)),
        *(case(seed, ladder(0)) for seed in range(3)),
        failed,
    )
    STUDY.write_report(found, tmp_path)
    text = (tmp_path / rundir.REPORT).read_text()
    assert "- no warmup, clipping to 0.3, bf16, seed 2 failed: it died" in text
    assert "| 0% | never | fp32 | below 0.01 |" in text
    assert "| 10% | 1 | bf16 | 1 or more | 0.1 |" in text
    assert "diverged 3/3" in text
    assert (tmp_path / PLOT).stat().st_size > 10_000
    assert len(list(STUDY.tables(found))) == 2
    labels = [point.label for point in STUDY.points(found)]
    assert labels == ["no warmup, no clipping, fp32", "10% warmup, clipping to 1, bf16"]
    told = of_case(found["cases"][0])
    assert told == ("10% warmup, clipping to 1, bf16, seed 0", "stable up to 1, 0 loss spikes")
    assert of_case(found["cases"][3])[1] == "diverged at 0.01, 2 loss spikes"


def test_points_are_every_combination() -> None:
    config = load_config(PRESET, ["bench.warmup_ratios=[0.1, 0.0]", "run.seed=4"])
    listed = points(config)
    assert len(listed) == 2 * 3 * 2 * 3
    assert listed[0] == {
        "warmup_ratio": 0.1, "max_grad_norm": 0.0, "precision": "fp32", "seed": 4,
    }  # fmt: skip
    made = point_config(config, listed[-1], 0.3)
    assert (made.optim.lr, made.optim.max_grad_norm, made.engine.precision) == (0.3, 0.3, "bf16")
    assert (made.schedule.warmup_ratio, made.schedule.warmup_steps, made.run.seed) == (0.0, None, 6)
    assert (made.log.every_steps, made.eval.every_steps, made.checkpoint.every_steps) == (1, 0, 0)
    by_steps = load_config(PRESET, ["schedule.warmup_steps=5"])
    assert point_config(by_steps, points(by_steps)[0], 0.1).schedule.warmup_steps is None


def test_a_run_is_evaluated_ten_times() -> None:
    assert evaluated_after(100) == tuple(range(10, 101, 10))
    assert evaluated_after(3) == (1, 2, 3)
    assert evaluated_after(25)[:3] == (3, 5, 8)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data.eval_fraction=0.0", "no record is held out"),
        ("bench.lrs=[0.1, 0.1]", "has one rate"),
        ('bench.precisions=["fp16"]', "fp16 needs a GPU"),
        ("engine.zero_stage=0", "zero_stage 0 trains in fp32 only"),
    ],
)
def test_what_compares_nothing_is_refused(setting: str, told: str) -> None:
    settings = [setting, "engine.precision=fp32"]
    with pytest.raises(UserError, match=told):
        check(load_config(PRESET, settings))


def end_of(lr: float, ladder: int, *, last: bool) -> events.Case:
    return events.Case({"ladder": ladder, "last": last, "end": {"lr": lr}}, "stability")


def one_run(lr: float, ladder: int = 0, *, last: bool = False) -> list[events.Event]:
    """The events of one step."""
    step = lines([5.0])[1]
    metrics = [events.Metrics(0, {"eval_loss": 6.0}), events.FirstStep(), events.Metrics(1, step)]
    return [events.Started(0), *metrics, end_of(lr, ladder, last=last)]


def test_the_runs_of_ladders_are_told_apart() -> None:
    told: list[tuple[int, list[tuple[float, int]]]] = []

    def tell(number: int, case: dict[str, Any]) -> None:
        told.append((number, [(run["lr"], run["steps"]) for run in case["runs"]]))

    found = Ladders(tell)
    for event in (*one_run(0.1), *one_run(0.2, last=True), *one_run(0.1, 1, last=True)):
        found(event)
    assert told == [(0, [(0.1, 1), (0.2, 1)]), (1, [(0.1, 1)])]


def test_lost_workers_begin_again_with_the_first_rate() -> None:
    told: list[tuple[int, int]] = []
    found = Ladders(lambda number, case: told.append((number, len(case["runs"]))))
    cut_off = one_run(0.1)[:2]
    for event in (*one_run(0.1), *cut_off, events.Restart("a worker died"),
                  *one_run(0.1), *one_run(0.2, last=True)):  # fmt: skip
        found(event)
    assert told == [(0, 2)]


def test_the_moment_ratio_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three weights, the last of which never has a gradient: it counts for nothing."""
    monkeypatch.setattr("torch.distributed.all_reduce", lambda _: None)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.95))
    engine = SimpleNamespace(basic_optimizer=optimizer, global_steps=0)
    ratio = watch_moments(engine)
    second, found = torch.zeros(3), []
    for step, gradient in enumerate(([1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [10.0, 2.0, 0.0]), start=1):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        engine.global_steps += 1
        found.append(ratio()["moment_ratio"])
        second = 0.95 * second + 0.05 * weight.grad**2
        expected = (weight.grad**2 / (second / (1 - 0.95**step)))[:2].mean().sqrt()
        assert found[-1] == pytest.approx(float(expected), rel=1e-6)
    assert found[:2] == pytest.approx([1.0, 1.0])
    assert found[2] > 1.2
    assert ratio() == {"moment_ratio": None}  # no update since
    for factor in (100.0, 0.01):  # the larger of two
        weight.grad = torch.tensor([factor, factor, 0.0])
        optimizer.step()
        engine.global_steps += 1
    largest = ratio()["moment_ratio"]
    assert largest is not None
    assert largest > 1.5


def test_ladders_that_share_workers() -> None:
    """All of a precision and a seed; and what a lost process had not measured has failed."""
    config = load_config(PRESET, ["bench.seeds=2"])
    batches = together(points(config), ("precision", "seed"))
    assert [len(batch) for batch in batches] == [9] * 4
    assert [(b[0]["precision"], b[0]["seed"]) for b in batches] == [
        ("fp32", 0), ("fp32", 1), ("bf16", 0), ("bf16", 1),
    ]  # fmt: skip
    seen: list[dict[str, Any]] = []
    keeper = Ended(batches, seen.append)
    keeper.report(1, {"result": {**batches[1][0], "status": "done", "runs": []}})
    keeper.fail(1, "it died")
    assert [one["status"] for one in seen] == ["done"] + ["failed"] * 8
    assert {one["seed"] for one in seen} == {1}
    assert {one["error"] for one in seen[1:]} == {"it died"}
    alone = together(points(config), tuple(points(config)[0]))
    assert [len(batch) for batch in alone] == [1] * 36
