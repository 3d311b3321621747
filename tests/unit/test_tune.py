"""Space, settings, ranking, stability and reports of `raysft tune`, without a cluster."""

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.studies.compare import Pair
from raysft.studies.divergence import has_diverged
from raysft.studies.tune.goal import LOSS, REWARD
from raysft.studies.tune.record import reason
from raysft.studies.tune.report import STUDY, best_toml, write_report
from raysft.studies.tune.schedulers import scheduler
from raysft.studies.tune.search import concurrency
from raysft.studies.tune.settings import check_search, grid, num_trials, random_draws, trial_config
from raysft.studies.tune.stability import stability
from raysft.studies.tune.trials import (
    Trial,
    best_of,
    ranked,
    read_before,
    read_results,
    write_results,
)
from raysft.verbs.registry import VERBS
from raysft.verbs.tune import TRAINS, equations

PRESET = "tune-stability"
LR_ONLY = (
    "tune.space.optim.max_grad_norm=none",
    "tune.space.schedule.warmup_ratio=none",
)


def checked(*overrides: str) -> None:
    config = load_config(PRESET, overrides)
    check_search(config, TRAINS[config.tune.verb].as_computed)


def error_of(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        checked(*overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("tune.space.optim.lr={unform=[1,2]}", "tune.space.optim.lr.unform: no such key; did you"),
        ("tune.space.optim.lr={uniform=[2,1]}", "tune.space.optim.lr: 2.0 is not below 1.0"),
        ("tune.space.optim.lr={int=[1,2],choice=[1]}", "name one of uniform, loguniform, int"),
        ("tune.space.optim.lr=3", "tune.space.optim.lr: input should be an object, but it is 3"),
        ("tune.space.optim.lr={loguniform=[0,1]}", "input should be greater than 0"),
        ("tune.space.optim.lr={grid=[1,2]}", 'optim.lr is a grid, and sampler "random" draws'),
        ("tune.sampler=grid", "takes every combination, but optim.lr is a range"),
        ("tune.scheduler=pbt", "optim.max_grad_norm cannot change then"),
        ("tune.space.optim.learn_rate={choice=[1]}", "optim.learn_rate: no such key"),
        ("tune.space.optim.lr={uniform=[-1.0,1.0]}", "optim.lr: input should be greater than 0"),
        ("tune.space.batch.global_batch_size={uniform=[8,16]}", "should be a valid integer"),
        ("tune.space.data.eval_fraction={choice=[0.1]}", "the data is read once"),
        ("tune.space.batch.seq_len={choice=[64]}", "the data is cut to it once"),
        ("tune.space.scaling.workers={choice=[1,2]}", "how many trials run at once"),
        ("schedule.warmup_steps=3", "set warmup_ratio or warmup_steps, not both"),
        ("data.eval_fraction=0.0", "no record is held out"),
    ],
)
def test_a_wrong_space_is_told_before_anything_starts(override: str, part: str) -> None:
    assert part in error_of(override)


STEPS_AND_RATIO = "tune.space.schedule.warmup_steps={int=[0,5]}"  # the preset has the other
STAGES = ("tune.space.engine.zero_stage={choice=[0,1]}", *LR_ONLY)
PRECISIONS = "tune.space.engine.precision={choice=[%s]}"


def test_a_space_in_which_no_combination_is_valid_is_refused() -> None:
    assert "set warmup_ratio or warmup_steps, not both" in error_of(STEPS_AND_RATIO)
    assert "zero_stage 0 trains in fp32 only" in error_of(*STAGES, PRECISIONS % "'bf16'")
    keys = ("optim.eps", "optim.weight_decay")
    many = [f"tune.space.{key}={{choice=[1e-8,1e-7,1e-6]}}" for key in keys]
    assert "set warmup_ratio or warmup_steps, not both" in error_of(STEPS_AND_RATIO, *many)


def test_a_space_with_valid_combinations_is_taken() -> None:
    checked(*STAGES, PRECISIONS % "'bf16','fp32'")
    # With the config's own precision no trial could have the first stage.
    checked(*STAGES, PRECISIONS % "'fp32'", "engine.precision=bf16")


REWARDED = (
    "tune.verb=ppo", "model.init=pretrained", "model.path=m", "model.shape=none", "run.max_steps=8",
    "ppo.group=4", "ppo.max_new_tokens=16",
)  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["tune.space.ppo.clip={choice=[0.1]}"], 'does not read it: set tune.verb = "ppo"'),
        (["tune.space.dpo.beta={choice=[0.1]}"], "it changes the loss that trials are compared by"),
        ([*REWARDED, "tune.space.ppo.checker={choice=['exact']}"], "trials are compared by it"),
        ([*REWARDED, "tune.space.ppo.reward={choice=['exact']}"], "it is what trials are after"),
        ([*REWARDED, "tune.space.ppo.beta={choice=[0.1]}"], "the least of them would win"),
        ([*REWARDED, "tune.space.ppo.missing_eos={choice=[0.0]}"], "it is a part of the reward"),
        (["tune.verb=dpo", "tune.scheduler=pbt"], "which runs of raysft dpo cannot"),
        ([*REWARDED, "tune.space.ppo.epochs={choice=[3]}"], "ends within an iteration"),
        (["tune.verb=ppo"], "goes on from a model that has learnt something"),
        (["tune.verb=dpo", "batch.tokens_per_micro_batch=600"], "both halves of a pair must fit"),
        (["tune.verb=rlhf"], "tune.verb: input should be 'train', 'dpo', 'reward' or 'ppo'"),
    ],
)
def test_what_trials_of_other_verbs_cannot_search(overrides: list[str], part: str) -> None:
    assert part in error_of(*overrides)


def test_what_trials_of_other_verbs_search() -> None:
    checked(*REWARDED, "tune.space.ppo.clip={choice=[0.1, 0.3]}", "data.eval_fraction=0.0")
    checked(*REWARDED, "tune.space.ppo.beta={choice=[0.1, 0.3]}", "ppo.checker=exact")
    checked("tune.verb=dpo", "model.init=pretrained", "model.path=m", "model.shape=none")


def test_the_reason_of_a_failed_trial_is_its_own(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    file.write_text("Failure # 1\nTraceback\n  File\nValueError: the reason\n\n")
    assert reason(str(file)) == "ValueError: the reason"
    for gone in (None, str(tmp_path / "none.txt")):
        assert reason(gone) == "the trial's process died"


def test_early_stopping_needs_evaluations() -> None:
    assert "set eval.every_steps" in error_of("tune.scheduler=asha", "eval.every_steps=0")


def test_the_default_space_is_rate_warmup_and_clipping() -> None:
    assert set(load_config("gpt2-tiny-cpu").tune.space) == {
        "optim.lr", "schedule.warmup_ratio", "optim.max_grad_norm",
    }  # fmt: skip


def test_tables_and_dotted_keys_are_the_same(tmp_path: Path) -> None:
    base = (
        '[model]\ninit = "scratch"\ntokenizer = "demo"\nshape = {n_layer=1, n_embd=8, n_head=1}\n'
        '[data]\npath = "demo"\n'
    )
    for number, space in enumerate((
        "[tune.space]\noptim.lr = {uniform = [0.1, 0.2]}\nmodel.shape.n_layer = {int = [1, 3]}",
        '[tune.space]\n"optim.lr" = {uniform = [0.1, 0.2]}\n"model.shape.n_layer" = {int = [1, 3]}',
    )):  # fmt: skip
        file = tmp_path / f"{number}.toml"
        file.write_text(base + space)
        config = load_config(str(file))
        assert set(config.tune.space) == {"optim.lr", "model.shape.n_layer"}
        assert config == Config.model_validate_json(json.dumps(config.model_dump(mode="json")))


def test_random_settings_lie_inside_and_a_longer_search_begins_alike() -> None:
    short = random_draws(load_config(PRESET))
    long = random_draws(load_config(PRESET, ["tune.num_trials=200"]))
    assert long[: len(short)] == short
    assert random_draws(load_config(PRESET, ["run.seed=1"])) != short
    rates = [float(settings["optim.lr"]) for settings in long]
    assert all(3e-4 <= rate <= 3e-2 for rate in rates)
    assert all(float(f"{rate:.4g}") == rate for rate in rates)  # what is shown is what is run
    below = sum(rate < 3e-3 for rate in rates)  # the middle, of logarithms
    assert 70 <= below <= 130
    assert {settings["optim.max_grad_norm"] for settings in long} == {0.3, 1.0, 3.0}


def test_whole_numbers_reach_both_ends() -> None:
    config = load_config(
        PRESET, ["tune.space.batch.global_batch_size={int=[8,10]}", "tune.num_trials=60"]
    )
    drawn = [settings["batch.global_batch_size"] for settings in random_draws(config)]
    assert set(drawn) == {8, 9, 10}
    assert all(type(value) is int for value in drawn)


def test_a_grid_is_every_combination_once() -> None:
    config = load_config(
        PRESET,
        [
            "tune.sampler=grid",
            "tune.space.optim.lr={grid=[0.001, 0.01]}",
            "tune.space.optim.max_grad_norm={grid=[0.0, 0.5, 1.0]}",
            "tune.space.schedule.warmup_ratio=none",
        ],
    )
    found = [(s["optim.lr"], s["optim.max_grad_norm"]) for s in grid(config)]
    by_hand = [(0.001, 0.0), (0.001, 0.5), (0.001, 1.0), (0.01, 0.0), (0.01, 0.5), (0.01, 1.0)]
    assert found == by_hand
    assert num_trials(config) == 6
    assert dict(equations(config))["trials"].startswith("6 = 2 x 3")


def test_tpe_comes_closer_than_chance_and_learns_from_divergence() -> None:
    from raysft.studies.tune.tpe import make_tpe

    config = load_config(PRESET, [*LR_ONLY, "tune.num_trials=40", "tune.sampler=tpe"])
    search = make_tpe(config, [{"optim.lr": 0.025}])
    rates = []
    for number in range(1, 41):
        sample = search.suggest(f"t{number}")["sample"]
        assert sample["number"] == number
        rate = sample["settings"]["optim.lr"]
        rates.append(rate)
        result: dict[str, Any] = {"score": abs(math.log(rate / 1e-3))}
        if rate > 5e-3:
            result = {"status": "diverged", "step": 0}
        search.on_trial_complete(f"t{number}", result)
    assert rates[0] == 0.025
    # A third of the range of logarithms diverges, and a random search would go on going there.
    assert sum(rate > 5e-3 for rate in rates[20:]) <= 3
    assert sum(0.5e-3 < rate < 2e-3 for rate in rates[20:]) >= 10  # by chance 6


def test_a_resumed_tpe_search_draws_nothing_twice() -> None:
    from raysft.studies.tune.tpe import make_tpe

    config = load_config(PRESET, ["tune.sampler=tpe"])

    def settings(search: Any, count: int) -> list[Any]:
        return [search.suggest(f"t{number}")["sample"]["settings"] for number in range(count)]

    begun = settings(make_tpe(config, []), 2)
    resumed = settings(make_tpe(config, begun), 4)
    assert resumed[:2] == begun
    assert len({str(one) for one in resumed}) == 4


def test_stability_by_hand() -> None:
    lines: list[dict[str, Any]] = [{"step": 0, "eval_loss": 6.0}]
    losses = [4.0, 2.0, 2.0, 9.0, 1.0]  # the medians before them: none, 4, 3, 2, 2
    norms = [1.0, None, 2.0, 3.0, 10.0]
    for step, loss, norm in zip((1, 5, 10, 15, 20), losses, norms, strict=True):
        lines.append({"step": step, "loss": loss, "grad_norm": norm, "clipped_steps": step > 9})
    found = stability(lines)
    assert found["clipped_share"] == 3 / 20
    assert found["loss_spike"] == 4.5
    assert found["grad_norm_p50"] == 2.5
    assert found["grad_norm_p99"] == pytest.approx(9.79)
    assert set(stability([]).values()) == {None}


@pytest.mark.parametrize(
    ("loss", "first", "diverged"),
    [
        (6.3, 6.2, False),  # a model from scratch a step after its start
        (7.0, 6.2, True),  # ln 492 = 6.198, and a tenth above is 6.82
        (2.0, 0.65, False),  # worse than the pretrained model it was, and far from lost
        (11.0, 12.0, False),  # bad from the start, and better now
        (float("inf"), 6.2, True),
        (float("nan"), 6.2, True),
    ],
)
def test_diverged_is_worse_than_the_start_and_than_a_guess(
    loss: float, first: float, diverged: bool
) -> None:
    assert has_diverged(loss, first, vocabulary=492) is diverged


def trial(number: int, status: str, loss: float, step: int = 100, **more: Any) -> Trial:
    settings = {"optim.lr": number / 1000, "optim.max_grad_norm": 1.0}
    settings["schedule.warmup_ratio"] = 0.1
    return Trial(
        number, settings, status=status, step=step, total_steps=100,
        curve=[(0, 6.2), (step, loss)], stability=stability([]), **more,
    )  # fmt: skip


TRIALS = [
    trial(1, "diverged", 3.0, step=25, diverged_step=50),
    trial(2, "done", 0.5),
    trial(3, "stopped", 0.1, step=50),
    trial(4, "failed", 0.2, step=75, error="out of memory"),
    trial(5, "done", 0.4),
    trial(6, "diverged", 2.0, step=50, diverged_step=75),
]


def test_ranking() -> None:
    assert [one.number for one in ranked(TRIALS, LOSS)] == [5, 2, 3, 4, 6, 1]
    best = best_of(TRIALS, LOSS)
    assert best is not None
    assert best.number == 5
    assert best_of([TRIALS[0], TRIALS[2]], LOSS) is None


def test_a_reward_is_better_where_it_is_higher(tmp_path: Path) -> None:
    trials = [trial(1, "done", 0.2), trial(2, "done", 0.7), trial(3, "stopped", 0.9)]
    trials.append(trial(4, "diverged", 0.1, step=10, diverged_step=20))
    assert [one.number for one in ranked(trials, REWARD)] == [2, 1, 3, 4]
    assert best_of(trials, REWARD) is trials[1]
    header = header_of(load_config(PRESET, [*REWARDED, "ppo.checker=exact"]))
    write_report(tmp_path, header, trials)
    text = (tmp_path / "report.md").read_text()
    assert "Trial 2 is the best of 4: checker's mean 0.7000 with" in text
    assert "![Checker's mean of every trial over its steps](curves.png)" in text
    assert "held-out" not in text
    assert "# checker's mean 0.7000 with" in (tmp_path / "best.toml").read_text()
    with (tmp_path / "trials.csv").open() as file:
        assert next(csv.DictReader(file))["checked"] == "0.7"
    write_results(tmp_path, header, trials)
    results = read_results(tmp_path)[1] | {"trials": [asdict(one) for one in trials]}
    costs = [point.figures["less checker's mean"] for point in STUDY.points(results)]
    assert costs == [-0.2, -0.7, -0.9, -0.1]
    a, b = STUDY.points(results)[:2]
    assert not Pair(a, a).worse(tolerance=0.1)
    assert not Pair(a, b).worse(tolerance=0.1)
    assert Pair(b, a).worse(tolerance=0.1)
    for name in ("curves.png", "settings.png", "parallel.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_the_last_words_name_the_verb_that_trains_the_best() -> None:
    best = {"best": 2, "best_config": "runs/s/best.toml"}
    then = "train with it: raysft"
    before = VERBS["tune"].done(best | {"eval_loss": 0.5})
    assert before == f"done: trial 2, held-out loss 0.5000; {then} train runs/s/best.toml"
    now = VERBS["tune"].done(best | {"goal": "mean reward", "score": 0.7, "trains": "ppo"})
    assert now == f"done: trial 2, mean reward 0.7000; {then} ppo runs/s/best.toml"


def header_of(config: Config) -> dict[str, Any]:
    return {
        "study": "tune",
        "stamp": {"command": "raysft tune tune-stability"},
        "config": config.model_dump(mode="json"),
    }


def test_results_come_back_and_a_resumed_search_skips_what_ended(tmp_path: Path) -> None:
    header = header_of(load_config(PRESET))
    write_results(tmp_path, header, TRIALS)
    file, read_header, trials = read_results(tmp_path)
    assert (file, read_header, trials) == (tmp_path / "results.json", header, TRIALS)
    assert [one.number for one in read_before(tmp_path) if not one.finished] == [4]  # it has failed
    assert read_before(tmp_path / "new") == []
    file.write_text('{"cases": []}')
    with pytest.raises(UserError, match="holds no results of `raysft bench` or `raysft tune`"):
        read_results(file)
    file.write_text('{"study": "seq-len", "stamp": {}, "config": {}, "cases": []}')
    with pytest.raises(UserError, match="holds no results of `raysft tune`"):
        read_results(file)


def test_best_toml_is_the_config_of_the_trial(tmp_path: Path) -> None:
    config = load_config(PRESET, ["run.name=x", "run.seed=7", "optim.betas=[0.8, 0.9]"])
    best = TRIALS[4]
    (tmp_path / "best.toml").write_text(best_toml(header_of(config), best, len(TRIALS)))
    loaded = load_config(str(tmp_path / "best.toml"))
    expected = trial_config(config, best.settings)
    assert loaded.run.name is None
    assert loaded.optim.lr == 0.005
    for section in ("model", "data", "batch", "optim", "schedule", "engine", "eval", "checkpoint"):
        assert getattr(loaded, section) == getattr(expected, section), section
    assert (loaded.run.seed, loaded.run.max_steps) == (7, config.run.max_steps)


def test_report_of_a_search(tmp_path: Path) -> None:
    write_report(tmp_path, header_of(load_config(PRESET)), TRIALS)
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["5", "2", "3", "4", "6", "1"]
    assert (rows[0]["optim.lr"], rows[0]["eval_loss"]) == ("0.005", "0.4")
    assert (rows[-1]["status"], rows[-1]["diverged_step"]) == ("diverged", "50")
    text = (tmp_path / "report.md").read_text()
    assert "Trial 5 is the best of 6: held-out loss 0.4000 with optim.lr = 0.005" in text
    assert "1 stopped early; 2 diverged; 1 failed; 400 steps were taken, 67% of all" in text
    assert "| 1 | diverged | 0.001 | 1 | 0.1 | 3.0000 | 50 |" in text
    assert "- Trial 4: out of memory" in text
    for name in ("curves.png", "settings.png", "parallel.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_workers_are_counted_node_by_node() -> None:
    config = load_config(PRESET, ["scaling.workers=2", "scaling.cpus_per_worker=2"])
    assert concurrency(config, [{"CPU": 3.0}, {"CPU": 3.0}]) == 1  # 6 CPUs, yet no third worker
    assert concurrency(config, [{"CPU": 8.0}, {"CPU": 5.0}]) == 3
    assert concurrency(config, [{"CPU": 64.0, "GPU": 8.0}]) == 16
    gpus = load_config(PRESET, ["scaling.gpus_per_worker=1", "scaling.workers=3"])
    assert concurrency(gpus, [{"CPU": 64.0, "GPU": 8.0}]) == 2
    few = load_config(PRESET, ["tune.max_concurrent=3"])
    assert concurrency(few, [{"CPU": 64.0}]) == 3


@pytest.mark.parametrize(
    ("override", "rungs"),
    [
        ("tune.space.schedule.warmup_ratio=none", [180, 60, 20]),  # a ninth, a third, the end
        ("tune.space.schedule.warmup_ratio={uniform=[0.0, 0.2]}", [108, 36]),
        ("schedule.warmup_ratio=0.25", [108, 36]),  # the space goes before
    ],
)
def test_asha_stops_no_trial_that_may_still_warm_up(override: str, rungs: list[int]) -> None:
    from ray.tune.schedulers import ASHAScheduler

    asha = scheduler(load_config(PRESET, ["tune.scheduler=asha", override]), total_steps=180)
    assert isinstance(asha, ASHAScheduler)
    (bracket,) = asha._brackets
    assert [milestone for milestone, _ in bracket._rungs] == rungs
