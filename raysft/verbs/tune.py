"""`raysft tune`: a search over config keys, of which every trial is a real training run."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from raysft.errors import UserError
from raysft.runs import events, rundir
from raysft.runs.events import Emit
from raysft.studies.tune.goal import LOSS, Trains, goal_of
from raysft.studies.tune.report import STUDY
from raysft.verbs import plan
from raysft.verbs.identities import movable
from raysft.verbs.pair_config import for_pairs, with_room
from raysft.verbs.ppo import check as check_rewards
from raysft.verbs.ppo import for_answers, with_places
from raysft.verbs.ppo import steps_equation as steps_of_answers
from raysft.verbs.resume import changes, how_to_resume, refuse, starts_with_any
from raysft.verbs.settle import settled
from raysft.verbs.verb import Results, Summary, Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config
    from raysft.train.objectives.objective import Objective

# What may differ without a word when a search goes on.
FREE = (
    "run.name", "run.storage", "log", "bench", "align", "tune.num_trials", "tune.max_concurrent",
    "scaling.max_failures",
)  # fmt: skip


def supervised(config: "Config") -> "Objective":  # noqa: ARG001
    from raysft.train.objectives.sft import SFT

    return SFT


def of_pairs(config: "Config") -> "Objective":
    from raysft.train.objectives.dpo import dpo

    return dpo(config.dpo)


def of_rewards(config: "Config") -> "Objective":
    from raysft.train.objectives.reward import reward

    return reward(config.reward_model)


def of_answers(config: "Config") -> "Objective":
    from raysft.train.objectives.ppo import ppo

    return ppo(with_places(config.ppo))


# By tune.verb.
TRAINS = {
    "train": Trains(supervised, lambda config: config),
    "dpo": Trains(of_pairs, for_pairs),
    "reward": Trains(of_rewards, for_pairs),
    "ppo": Trains(of_answers, for_answers),
}


def check(config: "Config") -> None:
    if config.tune.verb == "ppo":
        check_rewards(config)


def equations(config: "Config") -> list[tuple[str, str]]:
    from raysft.studies.tune.settings import check_search, num_trials

    tune = config.tune
    check_search(config, TRAINS[tune.verb].as_computed)  # raises UserError: a trial could not run
    ways = " x ".join(str(len(domain.values)) for domain in tune.space.values())
    count = num_trials(config)
    steps = steps_of_answers(config) if tune.verb == "ppo" else plan.steps_equation(config)
    trials = f"{count} = {ways}" if tune.sampler == "grid" else str(count)
    return [
        plan.model_equation(config),
        ("steps", f"{steps}, in each trial"),
        *plan.where_and_how(config),
        ("trials", f"{trials}; sampler {tune.sampler}, scheduler {tune.scheduler}"),
        ("each", f"a run of raysft {tune.verb}, ranked by its {goal_of(config).words}"),
        *(("search", f"{k}: {d.kind} {list(d.values)}") for k, d in tune.space.items()),
    ]


def run(config: "Config", run_dir: Path, emit: Emit) -> dict[str, Any]:
    from raysft.studies.tune.trials import read_before
    from raysft.verbs.inputs import beside_ray, read_inputs

    before, trains = read_before(run_dir), TRAINS[config.tune.verb]
    read, objective = trains.as_computed(config), trains.objective(config)
    kind = {"pairs": objective.pairs, "scalar": objective.scalar, "asked": objective.draws}
    inputs = beside_ray(read, emit, lambda there: read_inputs(read, run_dir, emit, there, **kind))
    from raysft.data.dataset import epoch_length
    from raysft.runtime.fit import total_steps
    from raysft.studies.tune import search
    from raysft.studies.tune.trial import SearchInputs, replay

    config = settled(config, inputs.hf_config, run_dir, emit, draws=objective.draws)
    config = with_room(config) if objective.pairs else config
    data = inputs.prepared
    if goal_of(config).metric == "eval_loss" and not len(data.heldout):
        raise UserError(
            "trials are compared by their held-out loss, and no record is held out of so few: "
            "raise data.eval_fraction, or set data.eval_path"
        )
    shared = SearchInputs(
        config=config,
        trains=trains,
        train=data.train,
        heldout=data.heldout,
        template=inputs.template,
        run_dir=run_dir.resolve(),
        stamp=rundir.read_json(run_dir / rundir.RUN)["stamp"],
        replays={trial.number: replay(trial) for trial in before if trial.finished},
    )
    epoch = epoch_length(data.train)
    steps = total_steps(config, epoch, objective)
    if not any(key.startswith(("schedule.", "batch.")) for key in config.tune.space):
        for caution in plan.cautions(config, steps, epoch):
            emit(events.Warning(caution))
    emit(events.Status("searching"))
    summary = search.run(shared, before, steps, emit)
    files = {"results": rundir.RESULTS, "report": rundir.REPORT, "best_config": rundir.BEST}
    paths = {name: str(run_dir / file) for name, file in files.items()}
    return summary | paths | {"data": inputs.facts}


def check_resume(run_dir: Path, config: "Config") -> list[str]:
    """No warning. Raises UserError when there is no search, or its trials were others."""
    from raysft.studies.tune.trials import read_before

    spec = rundir.read_run(run_dir / rundir.RUN, "config")
    if not (run_dir / rundir.RESULTS).exists():
        raise UserError(f"{run_dir} has no trial to go on with, so it {rundir.NOTHING_LEFT}")
    read_before(run_dir)
    if config.tune.scheduler == "pbt":
        raise UserError(
            f"{run_dir} cannot go on: under pbt the trials live off each other, and those that "
            "ended cannot be asked again. Start it under another --name"
        )
    changed = changes(spec["config"], config)
    free = (*FREE, *movable(run_dir))
    others = {key: pair for key, pair in changed.items() if not starts_with_any(key, free)}
    refuse(others, f"{run_dir} cannot go on with trials that differ from those it has")
    return []


def has_left(run_dir: Path) -> bool:
    return (run_dir / rundir.RESULTS).exists()


def done(summary: Summary) -> str:
    """Of a search of the version before too, which had one goal."""
    goal, score = summary.get("goal", LOSS.words), summary.get("score", summary.get("eval_loss"))
    return (
        f"done: trial {summary['best']}, {goal} {score:.4f}; train with it: "
        f"raysft {summary.get('trains', 'train')} {summary['best_config']}"
    )


def tables(summary: Summary, results: Results | None) -> Iterable[RenderableType]:  # noqa: ARG001
    """Also of a search that was interrupted, if it has begun a trial."""
    if not results or not results["trials"]:
        return ()
    return *STUDY.tables(results), Text(STUDY.verdict(results))


TUNE = Verb(
    name="tune",
    help="Search config keys; every trial is a real run. The word `search` may be left out.",
    example="raysft tune tune-stability --name search",
    plan=equations,
    run=run,
    has_left=has_left,
    check_resume=check_resume,
    done=done,
    interrupted=how_to_resume("the first trial", "with the trials that are left"),
    tables=tables,
    study=STUDY,
    check=check,
    pairs=lambda config: config.tune.verb in ("dpo", "reward"),
)
