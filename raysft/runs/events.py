"""What a job tells while it runs, each kind of event a type; and the line of JSON that carries it.

Workers send events to the driver, which hands them to the files of the run and, as JSON lines on
standard output, to whoever watches. Light imports only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Status:
    """What the job is doing now."""

    message: str


@dataclass(frozen=True)
class Mistake:
    """The user's input is wrong: told at once, before the job has ended."""

    message: str


@dataclass(frozen=True)
class Warning:
    """Something that a person should know, and that ends nothing."""

    message: str


@dataclass(frozen=True)
class Stage:
    """A run of a chain begins: what comes from here on is of it."""

    name: str
    number: int  # from 1
    of: int
    run_dir: str


@dataclass(frozen=True)
class Plan:
    total_steps: int


@dataclass(frozen=True)
class Chosen:
    """What the keys that say "auto" came to, as an equation."""

    message: str


@dataclass(frozen=True)
class Data:
    """The audit of the data: see data.audit."""

    facts: Facts


@dataclass(frozen=True)
class Placed:
    """A group of workers has its place in the cluster."""

    placement_group: str  # hexadecimal


@dataclass(frozen=True)
class Workers:
    """Model and engine are there on every worker."""

    world_size: int
    parameters: int
    optimizer: str  # its kernel; after a semicolon why another was not taken
    products: str | None  # how bf16 is multiplied, where there is a choice
    memory_kind: str
    memory_gib: Mapping[str, float]  # held now, by part
    observed: Facts  # hardware and versions: see provenance.observed
    trained: int | None = None  # of the parameters; fewer with an adapter


@dataclass(frozen=True)
class Started:
    """Training begins after this step: 0, or that of a checkpoint."""

    step: int


@dataclass(frozen=True)
class FirstStep:
    """The first step of these workers is done."""


@dataclass(frozen=True)
class Progress:
    """Where the workers are, a few times a second, for whoever watches; no file keeps it.

    Told without a look at the device: on a GPU the step is the last one given to it.
    """

    step: int
    tokens: int  # seen so far, by all workers, without padding
    seconds: float  # since these workers began to train
    doing: str  # the phase that they are in: see runs.phases


@dataclass(frozen=True)
class Metrics:
    """A line of metrics.jsonl: values under the keys of runs.metrics, reduced over all workers."""

    step: int
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of this step is whole and in its place."""

    step: int


@dataclass(frozen=True)
class Restart:
    """Why the workers start again."""

    message: str


@dataclass(frozen=True)
class Recovered:
    """The first step after a restart is done."""

    reason: str
    workers: int | None
    step: int | None  # the one that was gone on from
    seconds: float
    parts: Mapping[str, float]  # seconds, in their order


@dataclass(frozen=True)
class Profile:
    """Where the time of so many steps went: phase, seconds and share of each row."""

    steps: int
    rows: Sequence[Facts]


@dataclass(frozen=True)
class Sample:
    """What the model says to a held-out record."""

    instruction: str
    reference: str
    answer: str
    step: int | None = None  # after which; None of the finished model


@dataclass(frozen=True)
class Case:
    """The result of one case of a study, as results.json has it."""

    result: Facts
    study: str = "seq-len"  # its name; the version before had no other


@dataclass(frozen=True)
class Points:
    """How far a study of many points is: as it starts, and after each Case."""

    total: int
    ended: int  # those of before --resume among them
    at_once: int
    seconds_left: float | None  # by those that have ended since; None: too few to tell


@dataclass(frozen=True)
class Search:
    trials: int
    at_once: int
    goal: str = "held-out loss"  # what trials are ranked by; the version before had no other
    higher: bool = False  # is better


@dataclass(frozen=True)
class Trial:
    """A trial of a search, each time that something changes."""

    number: int
    settings: Facts
    status: str
    step: int
    total_steps: int | None
    loss: float | None
    eval_loss: float | None
    error: str | None
    diverged_step: int | None
    score: float | None = None  # what trials are ranked by: eval_loss, or what `metric` names
    metric: str = "eval_loss"


@dataclass(frozen=True)
class Check:
    """A finding of `raysft doctor`."""

    name: str
    status: Literal["pass", "warn", "fail"]
    found: str
    advice: str = ""  # what to do; empty where there is nothing


@dataclass(frozen=True)
class End:
    """The last one: exit code, summary.json, and results.json where the run has one."""

    exit_code: int
    summary: Facts
    results: Facts | None


Event = (
    Status | Mistake | Warning | Stage | Plan | Chosen | Data | Placed | Workers | Started
    | FirstStep | Progress | Metrics | Checkpoint | Restart | Recovered | Profile | Sample | Case
    | Points | Search | Trial | Check | End
)  # fmt: skip
Emit = Callable[[Event], None]

KINDS: dict[str, type[Any]] = {
    "status": Status, "mistake": Mistake, "warning": Warning, "stage": Stage, "plan": Plan,
    "chosen": Chosen, "data": Data,
    "placed": Placed, "workers": Workers, "started": Started, "first_step": FirstStep,
    "progress": Progress, "metrics": Metrics, "checkpoint": Checkpoint, "restart": Restart,
    "recovered": Recovered,
    "profile": Profile, "sample": Sample, "case": Case, "points": Points,
    "search": Search, "trial": Trial, "check": Check, "end": End,
}  # fmt: skip
NAMES = {kind: name for name, kind in KINDS.items()}
# The field whose keys lie on the wire beside those of the event itself.
LAID_FLAT = {"data": "facts", "metrics": "values", "case": "result"}


def to_wire(event: Event) -> dict[str, Any]:
    """{"event": "metrics", "step": 3, "loss": 1.2}."""
    name = NAMES[type(event)]
    wire = {field.name: getattr(event, field.name) for field in fields(event)}
    flat = wire.pop(LAID_FLAT[name]) if name in LAID_FLAT else {}
    return {"event": name, **wire, **flat}


def from_wire(wire: Mapping[str, Any]) -> Event | None:
    """The event of such a dict; None of one that this version does not know.

    The job may be run by another version of raysft: keys that are unknown here are left out.
    """
    name = wire.get("event")
    if name not in KINDS:
        return None
    known = {field.name for field in fields(KINDS[name])}
    values = {key: value for key, value in wire.items() if key in known}
    if name in LAID_FLAT:
        values[LAID_FLAT[name]] = {k: v for k, v in wire.items() if k not in known | {"event"}}
    try:
        event: Event = KINDS[name](**values)
    except TypeError:  # a key is missing
        return None
    return event
