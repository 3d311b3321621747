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
from raysft.studies.tune.tables import MEASURED, columns, ranked_table
from raysft.studies.tune.trials import COLUMNS, Trial, best_of, parse, ranked, words

if TYPE_CHECKING:
    from raysft.config.schema import Config

FIGURES = {
    "curves.png": "Held-out loss of every trial over its steps",
    "settings.png": "Each setting against the last held-out loss",
    "parallel.png": "All settings of a trial at once",
}
Header = Mapping[str, Any]  # results.json without its trials


def write_report(run_dir: Path, header: Header, trials: Sequence[Trial]) -> None:
    """best.toml, trials.csv, report.md and its figures."""
    best = best_of(trials)
    if best is not None:
        (run_dir / rundir.BEST).write_text(best_toml(header, best, len(trials)))
    write_csv(run_dir / "trials.csv", header, trials)
    draw(run_dir, header, trials)
    (run_dir / rundir.REPORT).write_text(markdown(header, trials))


def config_of(header: Header) -> "Config":
    from raysft.config.renamed import as_named_now
    from raysft.config.schema import Config

    return Config.model_validate_json(json.dumps(as_named_now(header["config"])))


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
        f"# held-out loss {best.eval_loss:.4f} with {words(best.settings)}.\n"
    )
    if best.changes:
        comment += (
            "# Its settings changed while it trained: these are the last, and training from the\n"
            "# start with them is another run.\n"
        )
    return comment + "\n" + tomli_w.dumps(table)


def write_csv(path: Path, header: Header, trials: Sequence[Trial]) -> None:
    """Ranked, one row a trial; an empty cell is unknown."""
    keys = keys_of(header)
    plain = ("eval_loss", "step", "total_steps", "diverged_step", "num_restarts", "wall_s", "error")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rank", "trial", "status", *keys, *plain[:2], *COLUMNS, *plain[2:]])
        for rank, trial in enumerate(ranked(trials), start=1):
            row = row_of(trial)
            settings = [trial.settings.get(key) for key in keys]
            values = [row.get(name) for name in (*plain[:2], *COLUMNS, *plain[2:])]
            writer.writerow([rank, trial.number, trial.status, *settings, *values])


def row_of(trial: Trial) -> dict[str, Any]:
    """What tables show of a trial, under flat keys."""
    row = {**asdict(trial), "eval_loss": trial.eval_loss, **trial.stability}
    return row if trial.diverged_step is None else row | {"step": trial.diverged_step}


def verdict(trials: Sequence[Trial]) -> str:
    """The outcome of the search in a sentence or two."""
    best = best_of(trials)
    if best is None:
        return f"None of {len(trials)} trials went to its end."
    text = (
        f"Trial {best.number} is the best of {len(trials)}: held-out loss {best.eval_loss:.4f} "
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
    keys = keys_of(header)
    rows = [row_of(trial) for trial in ranked(trials)]
    lines = ["# Search", "", verdict(trials), ""]
    lines += [
        *markdown_table(columns(keys, MEASURED), rows),
        "",
        "Best first; diverged trials last, with the step that told it. Steps clipped: the share of "
        "steps whose gradient was clipped; loss spike: the largest training loss over the median "
        "of the ten log steps before it; norm: of the gradient, before clipping, at log steps.",
        "",
    ]
    errors = [f"- Trial {t.number}: {t.error}" for t in ranked(trials) if t.error]
    lines += [*errors, ""] if errors else []
    for name, title in FIGURES.items():
        lines += [f"![{title}]({name})", ""]
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
    _, trials = parse(results)
    return [
        Point(
            f"trial {trial.number}: {words(trial.settings)}",
            trial.status,
            {"held-out loss": trial.eval_loss, "wall, s": trial.wall_s},
        )
        for trial in trials
    ]


def tables(results: Results) -> list[RenderableType]:
    header, trials = parse(results)
    return [ranked_table([row_of(trial) for trial in ranked(trials)], keys_of(header))]


STUDY = Study(
    name="tune",
    write_report=lambda results, folder: write_report(folder, *parse(results)),
    tables=tables,
    verdict=lambda results: verdict(parse(results)[1]),
    points=points,
    words=lambda trial: (f"trial {trial['number']}", trial["status"]),
)
