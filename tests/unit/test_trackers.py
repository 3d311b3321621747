"""What a run tells a service, whatever that does: stand-ins that fail, hang and come back."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.runs import delivery, events, rundir, trackers
from raysft.runs.delivery import hanging
from raysft.runs.events import Event, Metrics, Plan, Started, Warning
from raysft.runs.loggers import jsonl_logger, metrics_line
from raysft.runs.tracker import Line, Tracked, Tracker
from raysft.runs.trackers import SERVICES, Service, Trackers, known
from raysft.verbs.check import check
from raysft.verbs.registry import VERBS


class StandIn:
    """A service that keeps what it is told in this process."""

    def __init__(self) -> None:
        self.opened: list[Tracked] = []
        self.parents: list[Tracker | None] = []
        self.lines: dict[str, list[Line]] = {}  # by id
        self.ends: dict[str, tuple[str, Any, list[str]]] = {}
        self.calls = 0
        self.before: Callable[[int], None] = lambda _: None  # is told of each call, by number

    def call(self) -> None:
        self.calls += 1
        self.before(self.calls)

    def open(self, run: Tracked, parent: Tracker | None) -> Tracker:
        self.call()
        self.opened.append(run)
        self.parents.append(parent)
        return There(self, run.id)

    def steps(self, run_id: str) -> list[int]:
        return [line.step for line in self.lines.get(run_id, ())]


class There:
    def __init__(self, service: StandIn, run_id: str) -> None:
        self.service, self.id = service, run_id

    def log(self, lines: Sequence[Line]) -> None:
        self.service.call()
        self.service.lines.setdefault(self.id, []).extend(lines)

    def end(self, status: str, numbers: Any, files: Sequence[Path]) -> None:
        self.service.call()
        self.service.ends[self.id] = (status, dict(numbers), [file.name for file in files])


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """In the place of Weights & Biases."""
    found = StandIn()
    monkeypatch.setitem(SERVICES, "wandb", Service("W", "project", "wandb", found.open))
    for name, seconds in (("GATHER_S", 0.01), ("RETRY_S", 0.05)):
        monkeypatch.setattr(delivery, name, seconds)
    return found


DONE = {"status": "done", "steps": 5, "early": True, "mfu": None, "wall_s": 2.5, "data": {"n": 1}}


class Run:
    """A run's folder, what is emitted, and its files as the job writes them."""

    def __init__(self, folder: Path, *settings: str, verb: str = "train") -> None:
        self.folder = folder
        self.config = load_config("gpt2-tiny-cpu", ["log.wandb=p", *settings])
        stamp = {"command": "raysft train x", "utc": "2026-01-01", "git_sha": None}
        spec = {"verb": verb, "config": self.config.model_dump(mode="json"), "stamp": stamp}
        rundir.write_json(folder / rundir.RUN, spec)
        self.emitted: list[Event] = []
        jsonl = jsonl_logger(folder / rundir.METRICS, metrics_line)

        def emit(event: Event) -> None:
            jsonl(event)
            self.emitted.append(event)

        self.trackers = Trackers(known(self.config, folder), folder, emit)

    @property
    def id(self) -> str:
        return self.trackers.kept["wandb"].id

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.trackers(Metrics(step, {"loss": 1 / (step + 1)}))

    def warnings(self) -> list[str]:
        return [event.message for event in self.emitted if isinstance(event, Warning)]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_gets_the_metrics_the_config_and_the_report(tmp_path: Path, service: StandIn) -> None:
    run = Run(tmp_path, "optim.lr=0.25")
    run.trackers(Plan(5))
    run.trackers(Started(0))
    run.trackers(Metrics(1, {"loss": 2.0, "grad_norm": None, "time_left_s": 9.0}))
    run.trackers(Metrics(1, {"eval_loss": 3.0}))
    for name in ("report.md", "report.png", "run.txt"):
        (tmp_path / name).write_text(name)
    run.trackers.end(DONE)
    assert service.lines == {run.id: [Line(1, {"loss": 2.0}), Line(1, {"eval_loss": 3.0})]}
    numbers = {"summary/steps": 5.0, "summary/wall_s": 2.5}
    assert service.ends == {run.id: ("done", numbers, ["report.md", "report.png"])}
    (told,) = service.opened
    assert (told.project, told.name, told.kind, told.group) == ("p", tmp_path.name, "train", None)
    assert told.config["optim.lr"] == 0.25
    assert told.stamp["command"] == "raysft train x"
    assert not run.warnings()


def test_events_go_on_in_their_order(tmp_path: Path, service: StandIn) -> None:  # noqa: ARG001
    run = Run(tmp_path)
    for event in (told := [Plan(5), Started(0), Metrics(1, {"loss": 2.0})]):
        run.trackers(event)
    run.trackers.end(DONE)
    assert run.emitted == told


def test_of_a_run_that_did_not_begin_it_hears_nothing(tmp_path: Path, service: StandIn) -> None:
    run = Run(tmp_path)
    run.trackers(events.Status("loading"))
    run.trackers.end({"status": "failed"})
    assert not service.calls
    assert not (tmp_path / "wandb.json").exists()


def test_a_resumed_run_goes_on_in_the_same_one(tmp_path: Path, service: StandIn) -> None:
    """Killed after step 6, with a checkpoint of step 4: steps 5 and 6 come again."""
    first = Run(tmp_path)
    first.trackers(Plan(9))
    first.trackers(Started(0))
    first.steps(0, 6)
    wait_until(lambda: service.steps(first.id) == [*range(7)])
    wait_until(lambda: json.loads((tmp_path / "wandb.json").read_text())["step"] == 6)
    again = Run(tmp_path)
    again.trackers(Plan(9))
    again.trackers(Started(4))
    again.steps(5, 9)
    again.trackers.end(DONE)
    assert again.id == first.id
    assert [run.id for run in service.opened] == [first.id] * 2
    assert service.steps(first.id) == [*range(10)]
    first.trackers.end(DONE)  # its thread, which died with it


def test_workers_that_start_again_repeat_nothing(tmp_path: Path, service: StandIn) -> None:
    run = Run(tmp_path)
    run.trackers(Plan(9))
    for start, last in ((0, 5), (3, 7), (6, 9)):
        run.trackers(Started(start))
        run.steps(start + 1, last)
    run.trackers.end(DONE)
    assert service.steps(run.id) == [*range(1, 10)]


def test_a_service_that_is_new_gets_what_it_lacks(tmp_path: Path, service: StandIn) -> None:
    """From metrics.jsonl, up to the checkpoint, and no line that was cut short."""
    lines = [{"step": step, "loss": 1.0, "time_left_s": 1.0} for step in range(6)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo'
    (tmp_path / rundir.METRICS).write_text(text)
    run = Run(tmp_path)
    run.trackers(Plan(9))
    run.trackers(Started(3))
    run.steps(4, 6)
    run.trackers.end(DONE)
    assert service.steps(run.id) == [*range(7)]
    assert service.lines[run.id][0] == Line(0, {"loss": 1.0})


def test_one_that_fails_warns_once_and_gets_all_later(
    tmp_path: Path, service: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "https://me:swordfish@host/x"

    def before(call: int) -> None:
        if call <= 4:
            raise OSError(f"no way to {secret}\nmore")

    service.before = before
    run = Run(tmp_path)
    run.trackers(Plan(9))
    run.trackers(Started(0))
    run.steps(0, 3)
    wait_until(lambda: service.steps(run.id) == [*range(4)])
    run.steps(4, 5)
    run.trackers.end(DONE)
    assert service.steps(run.id) == [*range(6)]
    assert service.ends[run.id][0] == "done"
    (warning,) = run.warnings()
    assert warning.startswith("log.wandb: W takes nothing yet")
    assert "OSError: no way to https://***@host/x" in warning
    log = capfd.readouterr().err
    assert log.count("Traceback") == 1
    assert "swordfish" not in log + warning


def test_one_that_is_gone_at_the_end_is_told(tmp_path: Path, service: StandIn) -> None:
    def before(call: int) -> None:
        if call > 1:
            raise ConnectionError("refused")

    service.before = before
    run = Run(tmp_path)
    run.trackers(Plan(9))
    started = time.monotonic()
    run.trackers.end(DONE)
    assert time.monotonic() - started < 5
    assert run.warnings() == ["log.wandb: W lacks a part of this run: ConnectionError: refused"]
    assert not hanging()


@pytest.mark.parametrize("hangs_at", [1, 2, 3], ids=["opening", "logging", "ending"])
def test_one_that_hangs_delays_nothing(
    tmp_path: Path, service: StandIn, monkeypatch: pytest.MonkeyPatch, hangs_at: int
) -> None:
    monkeypatch.setattr(trackers, "ENDS_WITHIN_S", 0.3)
    released = threading.Event()
    service.before = lambda call: released.wait(30 * (call == hangs_at)) and None
    run = Run(tmp_path)
    started = time.monotonic()
    run.trackers(Plan(9))
    run.trackers(Started(0))
    run.steps(0, 3)
    assert time.monotonic() - started < 0.5
    run.trackers.end(DONE)
    assert 0.3 <= time.monotonic() - started < 2
    (warning,) = run.warnings()
    assert "it had not taken everything 0 s after the end" in warning
    assert hanging()
    released.set()
    wait_until(lambda: not hanging())


def test_what_waits_for_it_has_a_limit(
    tmp_path: Path, service: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "WAITING", 3)
    released = threading.Event()
    service.before = lambda _: released.wait(30) and None
    run = Run(tmp_path)
    run.trackers(Plan(9))
    run.trackers(Started(0))
    wait_until(lambda: service.calls == 1)
    run.steps(0, 9)
    assert run.warnings() == [
        "log.wandb: W takes nothing yet: too much waits for it. The run goes on, and tells it later"
    ]
    released.set()
    run.trackers.end(DONE)


def trial(number: int, status: str, step: int, loss: float | None = None) -> events.Trial:
    held_out = None if loss is None or step % 5 else loss + 1
    settings = {"optim.lr": number / 10}
    return events.Trial(number, settings, status, step, 9, loss, held_out, None, None)


def test_trials_are_runs_of_a_group(tmp_path: Path, service: StandIn) -> None:
    run = Run(tmp_path, verb="tune")
    run.trackers(events.Search(2, 2))
    for told in (
        trial(1, "running", 0), trial(2, "running", 0), trial(1, "running", 5, 2.0),
        trial(2, "running", 5, 4.0), trial(2, "stopped", 5, 4.0), trial(1, "running", 6, 1.5),
    ):  # fmt: skip
        run.trackers(told)
    run.trackers.end({"status": "interrupted"})
    search, *trials = service.opened
    assert (search.kind, search.group) == ("tune", None)
    one, two = f"{run.id}-001", f"{run.id}-002"
    assert {told.id for told in trials} == {one, two}
    assert {told.group for told in trials} == {tmp_path.name}
    assert [told.config["optim.lr"] for told in trials] == [0.1, 0.2]
    assert [type(parent) for parent in service.parents] == [type(None), There, There]
    both = {"loss": 2.0, "eval_loss": 3.0}
    assert service.lines[one] == [Line(5, both), Line(6, {"loss": 1.5})]
    assert service.steps(two) == [5]
    ends = {told: end[0] for told, end in service.ends.items()}
    assert ends == {run.id: "interrupted", one: "interrupted", two: "stopped"}


def test_a_search_that_goes_on_tells_no_trial_twice(tmp_path: Path, service: StandIn) -> None:
    """Its trial 1 has ended and is told again first; trial 2 begins again from step 0."""
    first = Run(tmp_path, verb="tune")
    first.trackers(events.Search(2, 2))
    told = [trial(1, "running", 5, 2.0), trial(2, "running", 4, 1.0), trial(1, "done", 9, 1.0)]
    for event in told:
        first.trackers(event)
    first.trackers.end({"status": "interrupted"})
    service.opened.clear()
    again = Run(tmp_path, verb="tune")
    again.trackers(trial(1, "done", 9, 1.0))
    again.trackers(events.Search(2, 2))
    for step, loss in ((0, None), (3, 2.0), (4, 1.0), (6, 0.5)):
        again.trackers(trial(2, "running", step, loss))
    again.trackers.end(DONE)
    assert [told.id for told in service.opened] == [first.id, f"{first.id}-002"]
    assert service.steps(f"{first.id}-001") == [5, 9]
    assert service.steps(f"{first.id}-002") == [4, 6]


def test_the_runs_of_a_chain_are_a_group(tmp_path: Path, service: StandIn) -> None:
    (tmp_path / "chain/sft").mkdir(parents=True)
    (tmp_path / "chain" / rundir.RUN).write_text("{}")
    run = Run(tmp_path / "chain/sft")
    run.trackers(Plan(1))
    run.trackers.end(DONE)
    assert [(told.name, told.group) for told in service.opened] == [("chain/sft", "chain")]


def test_no_secret_is_told(tmp_path: Path, service: StandIn) -> None:
    """A token alone before a host, which the config takes for a name."""
    run = Run(tmp_path, "data.path=https://ghp_swordfish@host/x.json", "model.tokenizer=my")
    run.trackers(Plan(1))
    run.trackers.end(DONE)
    assert service.opened[0].config["data.path"] == "https://***@host/x.json"


@pytest.mark.parametrize("key", SERVICES)
def test_one_that_is_not_installed_is_told_before_the_run(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    config = load_config("gpt2-tiny-cpu", [f"log.{key}=x"])
    words = rf"log\.{key}: .* is not installed here: pip install 'raysft\[{key}\]'"
    with pytest.raises(UserError, match=words):
        check(VERBS["train"], config)
    with pytest.raises(UserError, match=words):
        known(config, tmp_path)
    check(VERBS["train"], config, elsewhere=True)  # there it may be


def test_a_damaged_file_about_it_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "wandb.json").write_text("{")
    with pytest.raises(UserError, match=r"wandb\.json is damaged"):
        known(load_config("gpt2-tiny-cpu", ["log.wandb=x"]), tmp_path)


def test_the_plan_says_where_a_run_is_logged_to() -> None:
    config = load_config("gpt2-tiny-cpu", ["log.wandb=a", "log.mlflow=/b c"])
    assert dict(VERBS["train"].plan(config))["logged to"] == (
        "Weights & Biases (project a), MLflow (experiment /b c)"
    )
    assert "logged to" not in dict(VERBS["train"].plan(load_config("gpt2-tiny-cpu", [])))


@pytest.mark.parametrize("name", ["", "a/b", "a:b", " a", "x" * 129])
def test_names_that_a_service_would_refuse(name: str) -> None:
    with pytest.raises(UserError, match=r"log\.wandb: .*no name of a project"):
        load_config("gpt2-tiny-cpu", [f'log.wandb="{name}"'])
    if not name.strip():
        with pytest.raises(UserError, match=r"log\.mlflow"):
            load_config("gpt2-tiny-cpu", [f'log.mlflow="{name}"'])
