"""`raysft ppo`: a model learns from what its own answers are worth."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.errors import UserError
from raysft.runs import rundir
from raysft.runs.events import Emit
from raysft.studies.tables import FittedTable, Heading
from raysft.verbs import plan, train
from raysft.verbs.verb import Results, Summary

if TYPE_CHECKING:
    from raysft.config.preference import Ppo
    from raysft.config.schema import Config


def equations(config: "Config") -> list[tuple[str, str]]:
    from raysft.train import schedule

    config = for_answers(config)
    ppo, size = config.ppo, config.batch.global_batch_size
    names = [f"{weight:g} x {name}" if weight != 1 else name for name, weight in ppo.rewards]
    missing = f", less {ppo.missing_eos:g} without an end token" if ppo.missing_eos else ""
    return [
        plan.model_equation(config),
        ("objective", f"E[r] - {ppo.beta:g} KL(pi, ref); ref: the model at the start"),
        ("reward", " + ".join(names) + missing),
        ("compared with", "the other answers to the prompt" if ppo.advantage == "group" else
         f"a critic, lambda {ppo.lam:g}"),
        (
            "an iteration",
            f"{config.prompts * ppo.group:,} answers of at most {ppo.max_new_tokens} tokens = "
            f"{config.prompts} prompts x {ppo.group}; {ppo.updates} steps = {ppo.epochs} epochs x "
            f"{ppo.minibatches} minibatches of {size}",
        ),
        ("global batch", plan.batch_equation(config).replace("records", "answers", 1)),
        ("steps", steps_equation(config)),
        ("learning rate", schedule.equation(config)),
        *plan.where_and_how(config),
    ]  # fmt: skip


def steps_equation(config: "Config") -> str:
    run, updates = config.run, config.ppo.updates
    if run.max_steps is not None:
        return f"{run.max_steps:,} (run.max_steps) = {run.max_steps // updates:,} iterations"
    return f"{updates} x {run.epochs:g} epochs x prompts / {config.prompts}, rounded up"


def for_answers(config: "Config") -> "Config":
    """As it is computed: nothing is dropped out. Raises UserError for what does not go together."""
    plan.refuse_adapter(config, "ppo")
    ppo, batch, steps = config.ppo, config.batch, config.run.max_steps
    if config.model.init == "scratch" or config.model.path is None:
        raise UserError(
            "raysft ppo goes on from a model that has learnt something: set model.path to its "
            'folder, and model.init = "pretrained"'
        )
    if config.model.dropout:
        raise UserError(
            f"model.dropout {config.model.dropout:g} would draw answers from another distribution "
            "than the one that is trained: leave it out"
        )
    if weight := config.data.prompt_loss_weight:
        raise UserError(f"data.prompt_loss_weight {weight:g} trains prompts: leave it out")
    if (answers := batch.global_batch_size * ppo.minibatches) % ppo.group:
        raise UserError(
            f"batch.global_batch_size {batch.global_batch_size} x ppo.minibatches "
            f"{ppo.minibatches} = {answers} answers are no whole groups of ppo.group {ppo.group}"
        )
    if ppo.max_new_tokens >= batch.seq_len:
        raise UserError(
            f"ppo.max_new_tokens {ppo.max_new_tokens} leaves no room for a prompt in batch.seq_len "
            f"{batch.seq_len}"
        )
    if steps is not None and steps % ppo.updates:
        raise UserError(
            f"run.max_steps {steps} ends within an iteration, which has {ppo.updates} steps = "
            f"ppo.epochs {ppo.epochs} x ppo.minibatches {ppo.minibatches}: take a multiple"
        )
    model = config.model.model_copy(update={"dropout": 0.0})
    return config.model_copy(update={"model": model})


def check(config: "Config", made: str | None = None) -> None:
    """made: a reward that is not there yet."""
    from raysft.model.rewards import require_reward

    for name, _ in config.ppo.rewards:
        if name != made:
            require_reward(name, "ppo.reward")
    if config.ppo.checker is not None:
        require_reward(config.ppo.checker, "ppo.checker")


def run(config: "Config", run_dir: Path, emit: Emit) -> dict[str, Any]:
    from raysft.studies.training.report import read_metrics
    from raysft.train.objectives.ppo import FACTS, ppo

    found = train.run_objective(for_answers(config), run_dir, emit, ppo(with_places(config.ppo)))
    drawn = [
        {key: line[key] for key in FACTS if key in line}
        for line in read_metrics(run_dir / rundir.METRICS)
        if "reward" in line
    ]
    return found | {"drawn_first": drawn[0], "drawn_last": drawn[-1]}


def with_places(settings: "Ppo") -> "Ppo":
    """Rewards are found from wherever workers run."""
    from raysft.model.rewards import placed

    names: dict[str, Any] = {"reward": tuple(placed(name) for name, _ in settings.rewards)}
    names |= {"checker": placed(settings.checker)} if settings.checker else {}
    return settings.model_copy(update=names)


def drawn_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """Of the answers of the first line of metrics and of the last one: what it is, and both."""
    first, last = (summary.get(f"drawn_{end}", {}) for end in ("first", "last"))
    return [
        (f"drawn answers, {key.replace('_', ' ')}", f"{first[key]:.4f}", f"{last[key]:.4f}")
        for key in first
        if key in last
    ]


def closing(summary: Summary) -> list[tuple[str, str, str]]:
    """But for the training loss, of which a policy gradient's value says nothing."""
    known = {key: value for key, value in summary.items() if not key.startswith("train_loss")}
    return [*train.closing(known), *drawn_rows(summary)]


def tables(summary: Summary, results: Results | None) -> Iterable[FittedTable]:
    kept = {key: value for key, value in summary.items() if not key.startswith("train_loss")}
    yield from train.tables(kept, results)
    if summary["status"] != "done" or not drawn_rows(summary):
        return
    headings = [Heading("", "left", folds=True, style="dim"), Heading("first"), Heading("last")]
    table = FittedTable("\ndrawn answers", headings)
    for name, first, last in drawn_rows(summary):
        table.add_row(name.removeprefix("drawn answers, "), first, last)
    yield table


def done(summary: Summary) -> str:
    first, last = (summary.get(f"drawn_{end}", {}).get("reward") for end in ("first", "last"))
    reward = "" if first is None or last is None else f", reward {first:.3f} to {last:.3f}"
    return f"done: {summary['steps']} steps{reward}; model in {summary['model_dir']}"


PPO = replace(
    train.TRAIN,
    name="ppo",
    help="Policy gradients: learn from what the model's own answers are worth.",
    example="raysft ppo ppo-demo --name rewarded",
    plan=equations,
    run=run,
    check_resume=partial(train.check_resume, fixed=(*train.FIXED, "ppo")),
    done=done,
    tables=tables,
    write_report=partial(train.write_report, rows=closing),
    check=check,
)
