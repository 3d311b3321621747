"""`raysft align`: from demonstrations to a model that was rewarded, each stage a run of its own."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.errors import INTERRUPTED, RunError, UserError
from raysft.runs import events, rundir
from raysft.runs.events import Emit
from raysft.runs.metrics import duration
from raysft.studies.tables import FittedTable, Heading
from raysft.verbs import ppo
from raysft.verbs.ppo import PPO
from raysft.verbs.resume import admit, how_to_resume
from raysft.verbs.stages import (
    STAGES,
    Stage,
    as_before,
    clear,
    outcome,
    require_unchanged,
    stage_config,
    state,
)
from raysft.verbs.verb import Results, Summary, Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config


def folder_of(config: "Config") -> Path:
    return Path(config.run.storage) / str(config.run.name)


def equations(config: "Config") -> list[tuple[str, str]]:
    rows = [("stages", f"{len(STAGES)}, each a run of its own in {folder_of(config)}/")]
    for stage in STAGES:
        plan = dict(stage.verb.plan(stage_config(config, stage, folder_of(config))))
        words = "; ".join(f"{name} {plan[name]}" for name in stage.tells)
        rows.append((stage.name, f"raysft {stage.verb.name}: {words}"))
    return rows


def check(config: "Config") -> None:
    """Records and rewards of all stages but what the chain makes: hours may lie before them."""
    from raysft.data.first import check_data

    folder = folder_of(config)
    for stage in STAGES:
        own = stage_config(config, stage, folder)
        try:
            if "data.path" not in stage.reads(folder):
                check_data(own)
            if stage.verb is PPO:
                ppo.check(own, made=str(folder / "reward"))
            else:
                stage.verb.check(own)
        except UserError as error:
            raise UserError(f"{stage.name}: {error}") from None


def run(config: "Config", run_dir: Path, emit: Emit) -> dict[str, Any]:
    """Each stage is a job of its own, whose events are handed on."""
    # Beside this job's temporary folder and not in it: the paths of Ray's sockets must be short.
    os.environ["TMPDIR"] = str(Path(os.environ["TMPDIR"]).parent)
    found: dict[str, Any] = {}
    for number, stage in enumerate(STAGES, 1):
        own = stage_config(config, stage, run_dir)
        emit(events.Stage(stage.name, number, len(STAGES), str(run_dir / stage.name)))
        found[stage.name] = carried_out(stage, own, run_dir, emit)
    last = found["ppo"]
    kept = ("status", "verb", "run_dir", "steps", "wall_s", "exact_match", "eval_loss_last")
    told = {
        stage.name: {key: found[stage.name].get(key) for key in kept}
        | {"outcome": outcome(stage, found[stage.name])}
        for stage in STAGES
    }
    from raysft.studies.training.chain import write_chain_report

    write_chain_report(run_dir, told)
    return {"stages": told, "model_dir": last["model_dir"], "samples": last.get("samples", [])}


def carried_out(stage: Stage, config: "Config", folder: Path, emit: Emit) -> dict[str, Any]:
    """The summary of a stage, which is started or gone on with where it has not ended.

    Raises UserError, RunError and KeyboardInterrupt as the stage ended.
    """
    from raysft.carriers.local import run_local
    from raysft.runs.lock import held
    from raysft.verbs.identities import known_before

    run_dir = folder / stage.name
    how = state(stage, run_dir)
    if how == "done":
        emit(events.Warning(f"{stage.name} has ended before: it is taken as it is"))
        return rundir.read_json(run_dir / rundir.SUMMARY)
    resume = how == "left"
    if not resume:
        clear(run_dir)
    config = as_before(config, run_dir) if resume else config
    spec = {
        "verb": stage.verb.name,
        "config": config.model_dump(mode="json"),
        "stamp": rundir.read_json(folder / rundir.RUN)["stamp"],
    }
    ends: list[events.End] = []

    def hand_on(event: events.Event) -> None:
        match event:
            case events.End():
                ends.append(event)
            case events.Mistake():
                emit(events.Mistake(f"{stage.name}: {event.message}"))
            case _:
                emit(event)

    with held(run_dir, lambda told: emit(events.Warning(told))):
        for warning in admit(stage.verb, run_dir, config, resume=resume):
            emit(events.Warning(warning))
        rundir.write_run(run_dir, spec | (known_before(run_dir) if resume else {}))
        code = run_local(run_dir, hand_on)
    return summary_of(stage, ends, code, started=has_left(folder))


def summary_of(stage: Stage, ends: list[events.End], code: int, *, started: bool) -> dict[str, Any]:
    """started: there is something that must stay, though a stage was asked for in a wrong way."""
    summary = dict(ends[-1].summary) if ends else {"status": "died"}
    if code == INTERRUPTED or summary["status"] == "interrupted":
        raise KeyboardInterrupt
    if summary["status"] == "done":
        return summary
    told = f"{stage.name}: {summary.get('error', f'the job ended without a word, code {code}')}"
    raise UserError(told) if code == UserError.exit_code and not started else RunError(told)


def has_left(run_dir: Path) -> bool:
    return any(state(stage, run_dir / stage.name) != "none" for stage in STAGES)


def check_resume(run_dir: Path, config: "Config") -> list[str]:
    """Warnings of the stage that is gone on with. Raises UserError where nothing is left, or a
    stage was another one."""
    rundir.read_run(run_dir / rundir.RUN, "config")
    if not has_left(run_dir):
        raise UserError(f"{run_dir} has no stage to go on with, so it {rundir.NOTHING_LEFT}")
    warnings: list[str] = []
    for stage in STAGES:
        own, there = stage_config(config, stage, run_dir), run_dir / stage.name
        how = state(stage, there)
        if how == "done":
            require_unchanged(stage, own, there)
        elif how == "left" and stage.verb.check_resume is not None:
            warnings += stage.verb.check_resume(there, as_before(own, there))
    return warnings


def done(summary: Summary) -> str:
    return f"done: {len(summary.get('stages', {}))} stages; model in {summary['model_dir']}"


def tables(summary: Summary, results: Results | None) -> Iterable[FittedTable]:  # noqa: ARG001
    headings = [Heading("stage", "left"), Heading("", "left", folds=True), Heading("time")]
    table = FittedTable(f"\n{summary['run_dir']}", headings)
    for name, one in summary.get("stages", {}).items():
        table.add_row(name, one["outcome"], duration(one["wall_s"]))
    yield table


def write_report(run_dir: Path) -> None:
    from raysft.studies.training.chain import write_chain_report

    summary = rundir.read_json(run_dir / rundir.SUMMARY)
    if "stages" not in summary:
        raise UserError(f"{run_dir} has not ended: there is a report of each stage that has")
    write_chain_report(run_dir, summary["stages"])


ALIGN = Verb(
    name="align",
    help="The whole chain: supervised tuning, pairs of its answers, a reward model, PPO.",
    example="raysft align align-demo --name aligned",
    plan=equations,
    run=run,
    has_left=has_left,
    check_resume=check_resume,
    done=done,
    interrupted=how_to_resume("the first stage had anything to go on from", "where it was"),
    tables=tables,
    inputs=lambda config: (stage_config(config, STAGES[0], folder_of(config)), True),
    check=check,
    write_report=write_report,
    is_chain=True,
)
