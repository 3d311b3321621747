"""`raysft tune`: real trials on a real Ray, stopped, diverged, killed, resumed."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from raysft.config.load import load_config
from raysft.data.dataset import TokenDataset, prepare
from raysft.errors import RunError
from raysft.model.load import load_template
from raysft.runs import events, rundir
from raysft.runs.events import Event
from raysft.studies.tune import search
from raysft.studies.tune.trial import SearchInputs
from raysft.studies.tune.trials import Trial, read_results
from raysft.verbs.registry import VERBS
from raysft.verbs.tune import TRAINS
from tests.conftest import run_raysft
from tests.ray.test_errors_cli import check, wait_for, workers_of

SMALL = (
    "run.max_steps=15", "eval.every_steps=5", "log.every_steps=1", "batch.global_batch_size=16",
    "log.tensorboard=false", "eval.max_records=32", "tune.sampler=grid",
    "tune.space.schedule.warmup_ratio=none", "tune.space.optim.max_grad_norm=none",
)  # fmt: skip
ONE_WORKER = "scaling.workers=1"


def sets(*settings: str) -> list[str]:
    return [word for setting in (*SMALL, *settings) for word in ("--set", setting)]


def rates(*values: float) -> str:
    return f"tune.space.optim.lr={{grid={list(values)}}}"


@dataclass(frozen=True, kw_only=True)
class Together(TokenDataset):
    """Records that wait until each of these files has a line: no trial is ahead of another."""

    files: tuple[Path, ...] = ()

    def tokens(self, index: int) -> NDArray[np.int32]:
        wait_for(lambda: all(file.exists() and file.stat().st_size for file in self.files))
        return super().tokens(index)


def search_in(
    folder: Path, emit: Any, *settings: str, together: bool = False
) -> tuple[dict[str, Any], dict[int, Trial]]:
    """A search on the shared cluster, without a command line around it.

    together: its two trials take their first step at the same time.
    """
    config = load_config("tune-stability", [*SMALL, *settings])
    template = load_template(config)
    data = prepare(config, template)
    stamp = {"command": "test", "utc": "2026-01-01T00:00:00+00:00"}
    spec = {"verb": "tune", "config": config.model_dump(mode="json"), "stamp": stamp}
    rundir.write_json(folder / rundir.RUN, spec)
    files = tuple(folder / f"trials/{n:03}/metrics.jsonl" for n in (1, 2)) if together else ()
    train = Together(**vars(data.train), files=files)
    trains = TRAINS["train"]
    study = SearchInputs(config, trains, train, data.heldout, template, folder, stamp, replays={})
    assert config.run.max_steps is not None
    summary = search.run(study, [], config.run.max_steps, emit)
    return summary, {one.number: one for one in read_results(folder)[2]}


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_bad_trials_end_early_and_the_best_trains_again(
    tmp_path: Path, running_ray: dict[str, str]
) -> None:
    """One good rate, one that diverges, one that learns nothing, in this order, under asha."""
    freed_after_s: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, events.Trial) and event.status == "stopped":
            stopped, workers = time.monotonic(), workers_of(psutil.Process())
            assert workers

            def wait() -> None:
                while any(map(alive, workers)):
                    time.sleep(0.1)
                freed_after_s.append(time.monotonic() - stopped)

            Thread(target=wait, daemon=True).start()

    summary, trials = search_in(
        tmp_path,
        watch,
        rates(3e-3, 1.0, 1e-6),
        "tune.scheduler=asha",
        "optim.max_grad_norm=0.0",
        ONE_WORKER,
        "tune.max_concurrent=1",
    )
    good, diverged, useless = (trials[number] for number in (1, 2, 3))
    assert (good.status, good.step, [s for s, _ in good.curve]) == ("done", 15, [0, 5, 10, 15])
    assert diverged.status == "diverged"
    assert diverged.step < 15
    assert (useless.status, useless.step) == ("stopped", 5)
    assert summary["ranking"] == [1, 3, 2]
    assert summary["trials"] == {"done": 1, "stopped": 1, "diverged": 1, "failed": 0}
    wait_for(lambda: bool(freed_after_s), timeout_s=20)
    assert freed_after_s[0] < 10
    # Held-out losses and stability are those of the trial's own metrics.
    lines = [
        json.loads(x) for x in (tmp_path / "trials/001/metrics.jsonl").read_text().splitlines()
    ]
    assert good.curve == [(x["step"], x["eval_loss"]) for x in lines if "eval_loss" in x]
    assert good.stability["grad_norm_p99"] <= max(x["grad_norm"] for x in lines if "loss" in x)
    assert good.stability["clipped_share"] == 0.0
    for name in ("curves.png", "settings.png", "parallel.png", "trials.csv", "report.md"):
        assert (tmp_path / name).exists()
    assert not (tmp_path / "tune").exists()

    words = ("train", tmp_path / "best.toml", "--name", "b", "--json")
    again = run_raysft(*words, cwd=tmp_path, **running_ray)
    assert again.code == 0, again.stderr
    assert again.summary["eval_loss_last"] == pytest.approx(good.score, rel=1e-6)
    report = run_raysft("tune", "report", tmp_path, cwd=tmp_path)
    assert report.code == 0, report.stderr
    assert "Trial 1 is the best of 3" in report.stdout
    assert "diverged" in report.stdout


@pytest.mark.usefixtures("cluster")
def test_a_trial_whose_worker_dies_begins_again(tmp_path: Path) -> None:
    killed: list[psutil.Process] = []

    def kill(event: Event) -> None:
        if isinstance(event, events.Trial) and event.step == 3 and not killed:
            killed.extend(workers_of(psutil.Process())[:1])
            killed[0].kill()

    _, trials = search_in(tmp_path, kill, rates(3e-3), ONE_WORKER)
    assert killed
    assert (trials[1].status, trials[1].step, trials[1].num_restarts) == ("done", 15, 1)
    assert [step for step, _ in trials[1].curve] == [0, 5, 10, 15]


@pytest.mark.usefixtures("cluster")
def test_a_trial_that_ends_itself_has_gone_to_its_end(tmp_path: Path) -> None:
    settings = (rates(1e-12), ONE_WORKER, "eval.patience=1")
    summary, trials = search_in(tmp_path, lambda _: None, *settings)
    assert trials[1].status == "done"
    assert trials[1].step < 15
    assert summary["best"] == 1


@pytest.mark.usefixtures("cluster")
def test_pbt_moves_the_worse_trial_to_the_better(tmp_path: Path) -> None:
    """Two trials at once, one of which learns nothing until it goes on from the other."""
    settings = ("tune.scheduler=pbt", "tune.sampler=random", "tune.num_trials=2", ONE_WORKER)
    space = "tune.space.optim.lr={loguniform=[1e-6, 3e-3]}"
    _, trials = search_in(
        tmp_path, lambda _: None, "run.max_steps=20", *settings, space, together=True
    )
    first = {number: dict(trial.curve) for number, trial in trials.items()}
    worse, better = sorted(trials, key=lambda number: -first[number][5])
    assert first[worse][5] > first[better][5] + 0.3
    assert trials[worse].changes
    # The better one may in turn go on from the other, but not before that one has moved.
    assert all(step > trials[worse].changes[0][0] for step, _ in trials[better].changes)
    assert [trial.status for trial in trials.values()] == ["done", "done"]
    # It had the better one's weights, or it could not have come so far.
    assert first[worse][20] < first[better][5]
    assert "settings changed while it trained" in (tmp_path / "best.toml").read_text() or (
        trials[better].score <= trials[worse].score
    )


@pytest.mark.usefixtures("cluster")
def test_no_trial_that_ends_well_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no trial went to its end \(1 diverged\)"):
        search_in(tmp_path, lambda _: None, rates(1.0), "optim.max_grad_norm=0.0", ONE_WORKER)
    assert (tmp_path / "report.md").exists()
    assert not (tmp_path / "best.toml").exists()


@pytest.mark.usefixtures("cluster")
def test_a_trial_that_is_no_config_is_told_with_its_reason(tmp_path: Path) -> None:
    stages = ("tune.space.optim.lr=none", "tune.space.engine.zero_stage={grid=[0]}")
    precisions = "tune.space.engine.precision={grid=['bf16']}"
    with pytest.raises(RunError, match=r"(?s)\(1 failed\): .*zero_stage 0 trains in fp32 only"):
        search_in(tmp_path, lambda _: None, *stages, precisions, ONE_WORKER)


def start(tmp_path: Path, *options: str) -> tuple["subprocess.Popen[str]", psutil.Process]:
    """A search under way in a process of its own, and its job."""
    command = [Path(sys.executable).parent / "raysft", "tune", "tune-stability", "--name", "s"]
    process = subprocess.Popen(
        [*command, *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (tmp_path / "runs/s/results.json").exists())
    return process, psutil.Process(process.pid).children()[0]


def statuses(tmp_path: Path) -> list[str]:
    return [trial.status for trial in read_results(tmp_path / "runs/s")[2]]


def test_a_killed_search_goes_on_with_what_is_left(tmp_path: Path) -> None:
    """Four trials of one worker, two at once, of Optuna's; killed after the first has ended."""
    space = "tune.space.optim.lr={loguniform=[1e-3, 1e-2]}"
    options = sets("tune.sampler=tpe", "tune.num_trials=4", space, ONE_WORKER)
    process, job = start(tmp_path, *options)
    wait_for(lambda: "done" in statuses(tmp_path))
    job.kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "2 of 4 trials" in stderr
    begun = read_results(tmp_path / "runs/s")[2]
    ended = [trial.number for trial in begun if trial.status == "done"]
    assert 1 <= len(ended) < 4
    kept = {n: (tmp_path / f"runs/s/trials/{n:03}/metrics.jsonl").stat() for n in ended}

    refused = run_raysft(
        "tune", "tune-stability", "--name", "s", "--resume", *options, "--set", "optim.eps=1e-6",
        cwd=tmp_path,
    )  # fmt: skip
    check(refused, 2, "trials that differ from those it has", "optim.eps: 1e-08 then, 1e-06 now")
    outcome = run_raysft(
        "tune", "tune-stability", "--name", "s", "--resume", "--json", *options, cwd=tmp_path
    )
    assert outcome.code == 0, outcome.stderr
    assert outcome.summary["trials"]["done"] == 4
    assert statuses(tmp_path) == ["done"] * 4
    trials = read_results(tmp_path / "runs/s")[2]
    assert [t.settings for t in trials[: len(begun)]] == [t.settings for t in begun]
    assert len({str(trial.settings) for trial in trials}) == 4
    for number, before in kept.items():  # not run twice
        now = (tmp_path / f"runs/s/trials/{number:03}/metrics.jsonl").stat()
        assert (now.st_mtime_ns, now.st_ino) == (before.st_mtime_ns, before.st_ino)
    again = run_raysft("tune", "tune-stability", "--name", "s", *options, cwd=tmp_path)
    check(again, 2, "go on with it by --resume")


def test_an_interrupt_ends_with_the_table_so_far(tmp_path: Path) -> None:
    one_by_one = (ONE_WORKER, "tune.max_concurrent=1")
    process, job = start(tmp_path, *sets(rates(1e-3, 2e-3), *one_by_one))
    metrics = tmp_path / "runs/s/trials/001/metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2)
    family = [job, *job.children(recursive=True)]
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Trials, best first" in stderr
    assert "interrupted; go on with the trials that are left with" in stderr
    assert stderr.rstrip().endswith("--resume")
    assert "Traceback" not in stderr
    assert statuses(tmp_path)[0] == "interrupted"
    wait_for(lambda: not any(map(alive, family)))


def test_no_room_for_a_single_trial_is_said_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    outcome = run_raysft(
        "tune", "tune-stability", "--set", "scaling.cpus_per_worker=99", cwd=tmp_path
    )
    check(outcome, 2, "too few CPUs", "2 workers x 99 need 198")
    assert time.monotonic() - started < 30


OTHER_VERBS = (
    "batch.seq_len=64", "batch.tokens_per_micro_batch=256", "batch.global_batch_size=8",
    "eval.max_records=8", "log.every_steps=1", "scaling.workers=1", "tune.sampler=grid",
    "tune.space.schedule.warmup_ratio=none", "tune.space.optim.max_grad_norm=none",
)  # fmt: skip


def searched(
    preset: str, model: Path, folder: Path, env: dict[str, str], *settings: str
) -> tuple[dict[str, Any], dict[int, list[dict[str, Any]]]]:
    """The summary of a search of trials that are runs of another verb, and their metrics."""
    values = (f"model.path={model}", *OTHER_VERBS, *settings)
    words = [word for value in values for word in ("--set", value)]
    ran = run_raysft(
        "tune", preset, "--name", "s", *words, "--json", cwd=folder, timeout=600, **env
    )
    assert ran.code == 0, ran.stderr
    assert ran.summary["trials"] == {"done": 2, "stopped": 0, "diverged": 0, "failed": 0}
    files = {number: folder / f"runs/s/trials/00{number}/metrics.jsonl" for number in (1, 2)}
    metrics = {
        number: [json.loads(line) for line in file.read_text().splitlines()]
        for number, file in files.items()
    }
    assert ran.summary["goal"] in ran.stderr
    return ran.summary, metrics


def test_trials_of_policy_gradients_are_ranked_by_their_checker(
    tiny_model: Path, tmp_path: Path, running_ray: dict[str, str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "def letters(prompt, answer, reference):\n    return answer.count('e') / 10"
    )
    summary, metrics = searched(
        "ppo-demo", tiny_model, tmp_path, running_ray, "tune.verb=ppo", rates(1e-2, 1e-6),
        f"data.path={tiny_model.parent / 'records.json'}", "ppo.group=4", "ppo.max_new_tokens=8",
        "ppo.reward=mine.py:letters", "ppo.checker=mine.py:letters", "run.max_steps=8",
        "run.seed=1", "schedule.warmup_ratio=0.0", "ppo.beta=0.0",
    )  # fmt: skip
    scores = {
        number: np.mean([line["checked"] for line in lines if "checked" in line][-5:])
        for number, lines in metrics.items()
    }
    assert summary["goal"] == "checker's mean"
    assert summary["checked"] == summary["score"] == pytest.approx(max(scores.values()))
    assert summary["best"] == max(scores, key=lambda number: scores[number])
    best = load_config(str(tmp_path / "runs/s/best.toml"))
    assert best.optim.lr == summary["best_settings"]["optim.lr"]
    assert best.ppo.reward == "mine.py:letters"
    assert f"raysft ppo {summary['best_config']}" in VERBS["tune"].done(summary)


def test_trials_of_pairs_are_ranked_by_their_loss(
    tiny_model: Path, tmp_path: Path, running_ray: dict[str, str]
) -> None:
    records = json.loads((tiny_model.parent / "records.json").read_text())
    pairs = [
        {"prompt": one["instruction"], "chosen": one["output"], "rejected": one["output"][::-1]}
        for one in records
        if one["output"] != one["output"][::-1]
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    summary, metrics = searched(
        "reward-demo", tiny_model, tmp_path, running_ray, "tune.verb=reward", rates(1e-9, 1e-3),
        f"data.path={tmp_path / 'pairs.json'}", "data.eval_fraction=0.25", "run.max_steps=3",
    )  # fmt: skip
    last = {number: lines[-1]["eval_loss"] for number, lines in metrics.items()}
    assert summary["goal"] == "held-out loss"
    assert summary["eval_loss"] == pytest.approx(min(last.values()))
    assert 0 <= metrics[1][-1]["eval_accuracy"] <= 1
