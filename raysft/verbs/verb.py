"""What raysft can do as a job, each as one value. Light imports only, here and in each verb."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from raysft.runs.events import Emit
from raysft.studies.study import Study

if TYPE_CHECKING:
    from raysft.config.schema import Config

Summary = Mapping[str, Any]  # of summary.json
Results = Mapping[str, Any]  # of results.json
# What a config comes to, as (name, equation) rows. Raises UserError where it cannot run.
Plan = Callable[["Config"], list[tuple[str, str]]]
# In the job: the rest of its summary. Its `status` is "done" unless it says otherwise.
Run = Callable[["Config", Path, Emit], dict[str, Any]]


@dataclass(frozen=True)
class Verb:
    name: str  # in run.json; what is typed after `raysft`
    help: str
    example: str  # of its command
    plan: Plan
    run: Run
    # Whether an interrupted run has left something to go on from, or to look at.
    has_left: Callable[[Path], bool]
    # Warnings about going on with it; raises UserError where that cannot be. None: it never can.
    check_resume: Callable[[Path, "Config"], list[str]] | None
    done: Callable[[Summary], str]  # its last words
    interrupted: Callable[[Summary], str]
    # What a person sees above them, of whatever has ended.
    tables: Callable[[Summary, Results | None], Iterable[RenderableType]]
    # The config whose inputs are read, and whether its data is among them.
    inputs: Callable[["Config"], tuple["Config", bool]] = lambda config: (config, True)
    # What else can be told to be wrong at once, of a run on this machine. Raises UserError.
    check: Callable[["Config"], None] = lambda config: None  # noqa: ARG005
    study: Study | None = None  # whose results.json it leaves
    # report.md of a run directory, of whatever it holds; a study writes its own when it has ended.
    write_report: Callable[[Path], None] | None = None
    is_elastic: bool = False  # takes scaling.workers = [min, max]
    can_profile: bool = False
    # Whether it learns from preference pairs, and from nothing else.
    pairs: Callable[["Config"], bool] = lambda config: False  # noqa: ARG005
    is_chain: bool = False  # its stages are runs in folders below its own, with metrics of theirs
    is_a_run: bool = True  # false: it leaves no folder, and has a command of its own
