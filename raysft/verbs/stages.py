"""The stages of `raysft align`: each a run of its own, which reads what the ones before have made.
Light imports only."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from raysft.config.of_run import flat
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.verbs.identities import movable
from raysft.verbs.pairs import PAIRS
from raysft.verbs.ppo import PPO
from raysft.verbs.resume import changes, refuse, starts_with_any
from raysft.verbs.reward import REWARD
from raysft.verbs.settle import as_chosen, chosen_before, dated
from raysft.verbs.train import FIXED, TRAIN
from raysft.verbs.verb import Summary, Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config

Keys = dict[str, Any]  # dotted; None puts a key back to its default


class Stage(NamedTuple):
    name: str  # of its folder, and of its tables in [align]
    verb: Verb
    reads: Callable[[Path], Keys]  # of the chain's folder: what it takes from the stages before
    tells: tuple[str, ...]  # rows of its plan that the plan of the chain shows
    fixed: tuple[str, ...]  # what must not change once it has ended: what it came from


def tuned_model(folder: Path) -> Keys:
    return {
        "model.path": str(folder / "sft" / rundir.MODEL),
        "model.init": "pretrained",
        "model.tokenizer": None,
        "model.shape": None,
    }


def drawn_pairs(folder: Path) -> Keys:
    of_records = ("format", "fields", "subset", "split", "revision", "max_records", "eval_path")
    return {f"data.{key}": None for key in of_records} | {
        "data.path": str(folder / "pairs" / rundir.PAIRS)
    }


TRAINED = (*FIXED, "optim", "schedule", "run.max_steps", "run.epochs")
STAGES = (
    Stage("sft", TRAIN, lambda _: {}, ("steps",), TRAINED),
    Stage("pairs", PAIRS, tuned_model, ("answers", "reward"), ("data", "pairs", "run.seed")),
    Stage(
        "reward", REWARD, lambda at: tuned_model(at) | drawn_pairs(at), ("steps",),
        (*TRAINED, "reward_model"),
    ),
    Stage("ppo", PPO, tuned_model, ("steps", "reward"), (*TRAINED, "ppo")),
)  # fmt: skip


def stage_config(config: "Config", stage: Stage, folder: Path) -> "Config":
    """Of this stage of a chain that lies in `folder`. Raises UserError, also for what its verb
    cannot run."""
    from raysft.config.load import validate, with_overrides
    from raysft.config.of_run import without_none

    raw = without_none(config.model_dump(mode="json"))
    own = flat(dict(raw.pop("align")[stage.name]))
    if stage.verb is PPO:
        own = {"ppo.reward": str(folder / "reward")} | own
    place = {"run.storage": str(folder), "run.name": stage.name}
    overrides = own | stage_inputs(stage, folder, own) | place
    found = validate(with_overrides(raw, overrides), where=f"align.{stage.name}")
    stage.verb.plan(found)
    return found


def stage_inputs(stage: Stage, folder: Path, own: Keys) -> Keys:
    """Raises UserError where the tables of the stage name what the chain decides."""
    reads = stage.reads(folder)
    for key in own:
        if key in reads and reads[key] is not None:
            raise UserError(
                f"align.{stage.name}.{key}: the stages before decide it, {reads[key]}: leave it out"
            )
    return reads


def state(stage: Stage, run_dir: Path) -> str:
    """done: it has ended well. left: it can be gone on with. none: it has to start."""
    if rundir.status(run_dir) == "done":
        return "done"
    resumable = stage.verb.check_resume is not None and stage.verb.has_left(run_dir)
    return "left" if resumable else "none"


def as_before(config: "Config", run_dir: Path) -> "Config":
    """With the day and the choices of the run that is in this folder."""
    return dated(as_chosen(config, chosen_before(run_dir)), run_dir, resume=True)


def require_unchanged(stage: Stage, config: "Config", run_dir: Path) -> None:
    """Raises UserError where a stage that has ended was another one than is asked for now."""
    spec = rundir.read_run(run_dir / rundir.RUN, "config")
    changed, moves = changes(spec["config"], as_before(config, run_dir)), movable(run_dir)
    others = {
        key: pair
        for key, pair in changed.items()
        if starts_with_any(key, stage.fixed) and key not in moves
    }
    advice = f"Start another chain, or remove {run_dir} and the stages after it"
    refuse(others, f"the stage {stage.name} has ended, with other settings", advice)


def clear(run_dir: Path) -> None:
    """Of a stage that left nothing to go on from. Raises UserError while it runs."""
    if rundir.status(run_dir) == "running":
        raise UserError(f"{run_dir} is running: wait for its end, or stop it")
    shutil.rmtree(run_dir, ignore_errors=True)


def outcome(stage: Stage, summary: Summary) -> str:
    """What it says of itself, in a line."""
    return stage.verb.done(summary).removeprefix("done: ").partition("; model in ")[0]
