"""results.json of a search to best.toml, trials.csv, Markdown and figures."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from raysft.runs import rundir
from raysft.studies.hardware import machine_facts
from raysft.studies.study import Point, Results, Study
from raysft.studies.tables import how_it_was_measured, markdown_table
from raysft.studies.tune.figures import draw
from raysft.studies.tune.goal import Goal, goal_of
from raysft.studies.tune.tables import columns, measured, ranked_table
from raysft.studies.tune.trials import COLUMNS, Trial, best_of, parse, ranked, words

if TYPE_CHECKING:
    from raysft.config.schema import Config

FIGURES = {
    "curves.png": "{} of every trial over its steps",
    "settings.png": "Each setting against the last {}",
    "parallel.png": "All settings of a trial at once",
}
Header = Mapping[str, Any]  # results.json without its trials


def write_report(run_dir: Path, header: Header, trials: Sequence[Trial]) -> None:
    """best.toml, trials.csv, report.md and its figures."""
    goal = goal_in(header)
    best = best_of(trials, goal)
    if best is not None:
        (run_dir / rundir.BEST).write_text(best_toml(header, best, len(trials)))
    write_csv(run_dir / "trials.csv", header, trials)
    draw(run_dir, config_of(header).tune.space, trials, goal)
    (run_dir / rundir.REPORT).write_text(markdown(header, trials))


def config_of(header: Header) -> "Config":
    from raysft.config.renamed import as_named_now
    from raysft.config.schema import Config

    return Config.model_validate_json(json.dumps(as_named_now(header["config"])))


def goal_in(header: Header) -> Goal:
    return goal_of(config_of(header))


def keys_of(header: Header) -> list[str]:
    return list(header["config"]["tune"]["space"])


def best_toml(header: Header, best: Trial, count: int) -> str:
    """The config of the search with the best settings in place: what is not a default."""
    import tomli_w

    from raysft.config.load import validate, with_overrides

    raw = {name: keys for name, keys in header["config"].items() if name not in ("tune", "bench")}
    config = validate(with_overrides(raw, {"run.name": None, **best.settings}), "best.toml")
    table = config.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    comment = (
        f"# The best of {count} trials of `{header['stamp']['command']}`: trial {best.number},\n"
        f"# {goal_in(header).words} {best.score:.4f} with {words(best.settings)}.\n"
    )
    if best.changes:
        comment += (
            "# Its settings changed while it trained: these are the last, and training from the\n"
            "# start with them is another run.\n"
        )
    return comment + "\n" + tomli_w.dumps(table)


def write_csv(path: Path, header: Header, trials: Sequence[Trial]) -> None:
    """Ranked, one row a trial; an empty cell is unknown."""
    keys, goal = keys_of(header), goal_in(header)
    plain = (goal.metric, "step", "total_steps", "diverged_step", "num_restarts", "wall_s", "error")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rank", "trial", "status", *keys, *plain[:2], *COLUMNS, *plain[2:]])
        for rank, trial in enumerate(ranked(trials, goal), start=1):
            row = row_of(trial) | {goal.metric: trial.score}
            settings = [trial.settings.get(key) for key in keys]
            values = [row.get(name) for name in (*plain[:2], *COLUMNS, *plain[2:])]
            writer.writerow([rank, trial.number, trial.status, *settings, *values])


def row_of(trial: Trial) -> dict[str, Any]:
    """What tables show of a trial, under flat keys."""
    row = {**asdict(trial), "score": trial.score, **trial.stability}
    return row if trial.diverged_step is None else row | {"step": trial.diverged_step}


def verdict(trials: Sequence[Trial], goal: Goal) -> str:
    """The outcome of the search in a sentence or two."""
    best = best_of(trials, goal)
    if best is None:
        return f"None of {len(trials)} trials went to its end."
    text = (
        f"Trial {best.number} is the best of {len(trials)}: {goal.words} {best.score:.4f} "
        f"with {words(best.settings)}."
    )
    said = {"stopped": "stopped early", "diverged": "diverged", "failed": "failed"}
    told = [
        f"{count} {words}"
        for status, words in said.items()
        if (count := sum(trial.status == status for trial in trials))
    ]
    taken = sum(trial.step for trial in trials)
    whole = sum(trial.total_steps or 0 for trial in trials)
    if whole:
        told.append(f"{taken:,} steps were taken, {taken / whole:.0%} of all trials to their end")
    return f"{text} {'; '.join(told)}."


def markdown(header: Header, trials: Sequence[Trial]) -> str:
    keys, goal = keys_of(header), goal_in(header)
    best_first = ranked(trials, goal)
    rows = [row_of(trial) for trial in best_first]
    lines = ["# Search", "", verdict(trials, goal), ""]
    lines += [
        *markdown_table(columns(keys, measured(goal.words)), rows),
        "",
        "Best first; diverged trials last, with the step that told it. Steps clipped: the share of "
        "steps whose gradient was clipped; loss spike: the largest training loss over the median "
        "of the ten log steps before it; norm: of the gradient, before clipping, at log steps.",
        "",
    ]
    errors = [f"- Trial {t.number}: {t.error}" for t in best_first if t.error]
    lines += [*errors, ""] if errors else []
    for name, title in FIGURES.items():
        words = title.format(goal.words)
        lines += [f"![{words[0].upper()}{words[1:]}]({name})", ""]
    lines += how_it_was_measured("How it was searched", facts(header), header["stamp"])
    return "\n".join(lines)


def facts(header: Header) -> list[tuple[str, str]]:
    config = config_of(header)
    rows = machine_facts(header.get("observed"), gpu=config.on_gpu)
    for key, domain in config.tune.space.items():
        rows.append((key, f"{domain.kind} {list(domain.values)}"))
    scaling = config.scaling
    rows.append(("search", f"sampler {config.tune.sampler}, scheduler {config.tune.scheduler}"))
    rows.append(
        ("trial", f"{scaling.words}, ZeRO stage {config.engine.zero_stage}, "
         f"{config.engine.precision}, seed {config.run.seed}")
    )  # fmt: skip
    return rows


def points(results: Results) -> list[Point]:
    """Each trial, by its number and settings."""
    header, trials = parse(results)
    goal = goal_in(header)
    name = f"less {goal.words}" if goal.higher else goal.words
    return [
        Point(
            f"trial {trial.number}: {words(trial.settings)}",
            trial.status,
            {
                name: None if trial.score is None else goal.cost(trial.score),
                "wall, s": trial.wall_s,
            },
        )
        for trial in trials
    ]


def tables(results: Results) -> list[RenderableType]:
    header, trials = parse(results)
    goal = goal_in(header)
    rows = [row_of(trial) for trial in ranked(trials, goal)]
    return [ranked_table(rows, keys_of(header), goal.words)]


def of_results(results: Results) -> str:
    header, trials = parse(results)
    return verdict(trials, goal_in(header))


STUDY = Study(
    name="tune",
    write_report=lambda results, folder: write_report(folder, *parse(results)),
    tables=tables,
    verdict=of_results,
    points=points,
    words=lambda trial: (f"trial {trial['number']}", trial["status"]),
)
