"""`raysft train`: one training run."""

import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.errors import RunError
from raysft.runs import events, rundir, snapshot
from raysft.runs.events import Emit, Event
from raysft.runs.metrics import duration
from raysft.studies.tables import FittedTable, Heading
from raysft.train.checkpoint import repair
from raysft.verbs import plan
from raysft.verbs.identities import movable
from raysft.verbs.pair_config import for_pairs, with_room
from raysft.verbs.resume import changes, how_to_resume, refuse, starts_with_any
from raysft.verbs.settle import settled
from raysft.verbs.verb import Results, Summary, Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config
    from raysft.studies.training.report import Closing
    from raysft.train.objectives.objective import Objective

# What the saved state depends on: a change would load wrongly, or repeat or skip records.
FIXED = (
    "model", "data", "batch", "engine.precision", "engine.offload_optimizer",
    "engine.offload_params", "optim.name", "run.seed", "adapter.rank", "adapter.alpha",
    "adapter.dropout", "adapter.target_modules", "adapter.variant",
)  # fmt: skip
# What may differ without a word.
FREE = (
    "run.name", "run.storage", "run.samples", "run.push_to_hub", "run.push_private", "run.license",
    "log", "checkpoint", "eval", "bench", "tune",
    "scaling.max_failures", "adapter.merge", "reward_model", "dpo", "ppo", "pairs", "align",
)  # fmt: skip


def equations(config: "Config") -> list[tuple[str, str]]:
    from raysft.train import schedule

    rows = [
        plan.model_equation(config),
        ("global batch", plan.batch_equation(config)),
        (
            "tokens a step",
            f"at most {config.batch.global_batch_size * config.batch.seq_len:,} = "
            f"{config.batch.global_batch_size} records x {config.batch.seq_len} seq_len",
        ),
        ("steps", plan.steps_equation(config)),
        ("learning rate", schedule.equation(config)),
        *plan.where_and_how(config),
    ]
    if config.schedule.min_lr_ratio == 1.0:
        rows.append(("note", "min_lr_ratio = 1: the rate stays constant after warmup"))
    return rows


def run(config: "Config", run_dir: Path, emit: Emit) -> dict[str, Any]:
    from raysft.train.objectives.sft import SFT

    return run_objective(config, run_dir, emit, SFT)


def run_objective(
    config: "Config", run_dir: Path, emit: Emit, objective: "Objective"
) -> dict[str, Any]:
    """The rest of the summary of a run that minimises this."""
    from raysft.verbs.inputs import beside_ray, read_inputs

    read = for_pairs(config) if objective.pairs else config
    kind = {"pairs": objective.pairs, "scalar": objective.scalar, "asked": objective.draws}
    template, hf_config, prepared, facts, identities = beside_ray(
        read, emit, lambda there: read_inputs(read, run_dir, emit, there, **kind)
    )
    from raysft.data.dataset import epoch_length
    from raysft.runtime.connect import shut_down_ray
    from raysft.runtime.fit import fit, total_steps

    config = settled(config, hf_config, run_dir, emit, draws=objective.draws)
    if objective.pairs:
        config = with_room(config)
    epoch = epoch_length(prepared.train)
    for caution in plan.cautions(config, total_steps(config, epoch, objective), epoch):
        emit(events.Warning(caution))
    emit(events.Status("starting workers"))
    observed: dict[str, Any] = {}
    last: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []

    def keep(event: Event) -> None:
        if isinstance(event, events.Workers):
            observed.update(vars(event))
        if isinstance(event, events.Metrics) and "loss" in event.values:
            last.update(event.values)
        if isinstance(event, events.Sample) and event.step is None:
            samples.append(dict(vars(event)))
        emit(event)

    result = fit(
        config, prepared.train, prepared.heldout, hf_config, template.tokenizer, run_dir, keep,
        objective=objective, answers=not objective.scalar, identities=identities,
    )  # fmt: skip
    shut_down_ray()
    steps = result.totals.pop("step")
    results = {
        "model_dir": str(run_dir / rundir.MODEL),
        "num_restarts": result.num_restarts,
        "restarts": result.restarts,
        "num_records": facts["num_records"],
        "num_eval_records": facts["num_eval_records"],
        "num_dropped": facts["num_dropped"],
        "steps": steps,
        **result.totals,
        "peak_memory_gib": last.get("peak_memory_gib"),
        "reserved_memory_gib": last.get("reserved_memory_gib"),
        "samples": samples,
        "data": facts,
        "workers": observed,
    }
    return results | describe_and_push(config, run_dir, results, emit)


def describe_and_push(
    config: "Config", run_dir: Path, results: dict[str, Any], emit: Emit
) -> dict[str, Any]:
    """Write the model card, and upload the model where that is asked for: `pushed_to`, its URL.

    An upload that fails costs nothing but a warning.
    """
    from raysft.model.card import facts_of, write_card
    from raysft.model.hub import push

    folder, name = run_dir / rundir.MODEL, config.run.push_to_hub
    facts = facts_of(run_dir) | results
    write_card(config, folder, facts)
    if name is None:
        return {}
    emit(events.Status(f"pushing the model to {name}"))
    try:
        url = push(
            folder, name, private=config.run.push_private,
            write_card=lambda repo: write_card(config, folder, facts, repo),
        )  # fmt: skip
    except RunError as error:
        again = ["raysft", "export", str(run_dir), "--push-to-hub", name]
        again += ["--private"] if config.run.push_private else []
        emit(events.Warning(f"{error}. The model is in {folder}; again: {shlex.join(again)}"))
        return {"pushed_to": None}
    return {"pushed_to": url}


def check_resume(run_dir: Path, config: "Config", fixed: tuple[str, ...] = FIXED) -> list[str]:
    """Warnings. fixed: what the run's saved state depends on.

    Raises UserError when there is nothing to resume, or the config does not fit it.
    """
    spec = rundir.read_run(run_dir / rundir.RUN, "config")
    repaired = repair.repair(run_dir)
    repair.require_checkpoint(run_dir)
    changed, moves = changes(spec["config"], config), movable(run_dir)
    held = {k: v for k, v in changed.items() if starts_with_any(k, fixed) and k not in moves}
    refuse(held, f"{run_dir} cannot go on with other settings of its saved state")
    free = {key: pair for key, pair in changed.items() if not starts_with_any(key, FREE)}
    told = [f"{key} was {before!r} and is now {now!r}" for key, (before, now) in free.items()]
    return [repaired, *told] if repaired else told


def has_left(run_dir: Path) -> bool:
    return bool(snapshot.checkpoints(run_dir))


def done(summary: Summary) -> str:
    first, last = summary["eval_loss_first"], summary["eval_loss_last"]
    heldout = "" if last is None else f", held-out loss {first:.4f} to {last:.4f}"
    model, kept = f"model in {summary['model_dir']}", summary.get("model_step")
    if kept not in (None, summary["steps"]):
        best = f"held-out loss {summary['best_eval_loss']:.4f}"
        if summary["config"]["checkpoint"]["keep_best"] == "exact_match":
            best = f"exact match {summary['best_exact_match']:.3f}"
        model = f"model of step {kept}, {best}, in {summary['model_dir']}"
    return f"done: {summary['steps']} steps{early(summary)}{heldout}; {model}"


def early(summary: Summary) -> str:
    if not summary.get("ended_early"):
        return ""
    patience = summary["config"]["eval"]["patience"]
    return f" (no lower held-out loss in {patience} evaluations)"


def number(spec: str) -> Callable[[Any], str]:
    return lambda value: format(value, spec)


def within_rounding(difference: float) -> str:
    """Of a run that ended well: what rounding does not explain has failed it."""
    return f"{difference:.1e}, by rounding" if difference else "equal"


# What it says, key of the summary, how it is written.
CLOSING_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("steps", "steps", number(",")),
    ("step of the model", "model_step", number(",")),
    ("tokens seen", "tokens_seen", number(",")),
    ("supervised tokens seen", "supervised_tokens_seen", number(",")),
    ("tokens/s", "tokens_per_second", number(",.0f")),
    ("supervised tokens/s", "supervised_tokens_per_second", number(",.0f")),
    ("step time, median", "step_time_p50_s", number(".3f")),
    ("step time, 95 %", "step_time_p95_s", number(".3f")),
    ("share of the measured peak (MFU)", "mfu", number(".1%")),
    ("share of the datasheet's peak", "mfu_datasheet", number(".1%")),
    ("memory, largest worker, GiB", "peak_memory_gib", number(".2f")),
    ("with what PyTorch kept in reserve", "reserved_memory_gib", number(".2f")),
    ("clipped steps", "clipped_steps", number(",")),
    ("checkpoints", "checkpoints", number(",")),
    ("checkpoints, training waited, s", "checkpoint_stall_s", number(".1f")),
    ("exact match, held out", "exact_match", number(".3f")),
    ("export against engine, logits", "export_logit_difference", within_rounding),
    ("wall time", "wall_s", duration),
    ("pushed to", "pushed_to", str),
)


def closing(summary: Summary) -> list[tuple[str, str, str]]:
    """Rows of what is known: what it says, the first value, the last one."""
    rows: list[tuple[str, str, str]] = []
    for name, key in (("training loss", "train_loss"), ("held-out loss", "eval_loss")):
        values = [summary.get(f"{key}_{end}") for end in ("first", "last")]
        first, last = ("" if value is None else f"{value:.4f}" for value in values)
        if first or last:
            rows.append((name, first, last))
    for name, key, render in CLOSING_ROWS:
        if summary.get(key) is not None:
            rows.append((name, "", render(summary[key])))
    return rows


def tables(summary: Summary, results: Results | None) -> Iterable[FittedTable]:  # noqa: ARG001
    if summary["status"] != "done":
        return
    headings = [Heading("", "left", folds=True, style="dim"), Heading("first"), Heading("last")]
    table = FittedTable(f"\n{summary['run_dir']}: done", headings)
    for row in closing(summary):
        table.add_row(*row)
    yield table


def write_report(run_dir: Path, rows: "Closing" = closing) -> None:
    """rows: of its outcome."""
    from raysft.studies.training import report

    report.write_report(run_dir, rows)


TRAIN = Verb(
    name="train",
    help="Masked supervised fine-tuning: loss on response tokens only.",
    example="raysft train gpt2-tiny-cpu --name first",
    plan=equations,
    run=run,
    has_left=has_left,
    check_resume=check_resume,
    done=done,
    interrupted=how_to_resume("the first checkpoint", "from the newest checkpoint"),
    tables=tables,
    write_report=write_report,
    is_elastic=True,
    can_profile=True,
)
