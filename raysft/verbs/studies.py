"""What the verbs of all studies of several runs share: how they go on, and their words."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from raysft.errors import UserError
from raysft.runs import rundir
from raysft.runs.events import Emit
from raysft.studies.study import Study
from raysft.verbs.identities import movable
from raysft.verbs.resume import changes, how_to_resume, refuse, starts_with_any
from raysft.verbs.settle import settled
from raysft.verbs.verb import Results, Summary, Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config
    from raysft.studies.point_runs import Inputs

# What may differ without a word when a study goes on: more seeds among it.
FREE = (
    "run.name", "run.storage", "log", "tune", "align", "bench.seeds", "scaling.max_failures",
)  # fmt: skip


def study_verb(
    study: Study,
    help: str,
    plan: Callable[["Config"], list[tuple[str, str]]],
    measure: Callable[["Inputs", Emit], dict[str, Any]],
    *,
    draws: bool = False,
) -> Verb:
    """measure: on the Ray that is there, to the summary. draws: its runs answer prompts."""

    def run(config: "Config", run_dir: Path, emit: Emit) -> dict[str, Any]:
        from raysft.verbs.inputs import beside_ray, read_inputs

        read = beside_ray(
            config, emit, lambda there: read_inputs(config, run_dir, emit, there, asked=draws)
        )
        from raysft.studies.point_runs import Inputs

        chosen, data = settled(config, read.hf_config, run_dir, emit, draws=draws), read.prepared
        tokenizer = read.template.tokenizer
        shared = Inputs(chosen, read.hf_config, tokenizer, data.train, data.heldout, run_dir)
        return measure(shared, emit)

    def tables(summary: Summary, results: Results | None) -> Iterable[RenderableType]:
        return study.tables(results) if results and summary["status"] == "done" else ()

    return Verb(
        name=f"bench {study.name}",
        help=help,
        plan=plan,
        run=run,
        has_left=has_left,
        check_resume=check_resume,
        done=done,
        interrupted=how_to_resume("the first run", "with the runs that are left"),
        tables=tables,
        study=study,
        example=f"raysft bench {study.name} bench-{study.name} --name {study.name}",
    )


def check_resume(run_dir: Path, config: "Config") -> list[str]:
    """No warning. Raises UserError when there is no study, or its points were others."""
    spec = rundir.read_run(run_dir / rundir.RUN, "config")
    if not has_left(run_dir):
        raise UserError(f"{run_dir} has no run to go on with, so it {rundir.NOTHING_LEFT}")
    free = (*FREE, *movable(run_dir))
    changed = changes(spec["config"], config)
    others = {key: pair for key, pair in changed.items() if not starts_with_any(key, free)}
    refuse(others, f"{run_dir} cannot go on with runs that differ from those it has")
    return []


def has_left(run_dir: Path) -> bool:
    return (run_dir / rundir.RESULTS).exists()


def done(summary: Summary) -> str:
    return f"{summary['verdict']}\ndone: {summary['report']}"
