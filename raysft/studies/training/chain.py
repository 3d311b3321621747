"""The report of a chain of runs: what each stage came to, and the reports of its own beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysft.runs import rundir
from raysft.runs.metrics import duration
from raysft.studies.training.report import REWARDS, fenced, samples, table, where

Told = Mapping[str, Mapping[str, Any]]  # of each stage by name, as `raysft align` has it


def write_chain_report(folder: Path, stages: Told) -> None:
    """report.md. Raises UserError and OSError."""
    (folder / rundir.REPORT).write_text(markdown(folder, stages))


def markdown(folder: Path, stages: Told) -> str:
    spec = rundir.read_run(folder / rundir.RUN, "config", "stamp")
    last = rundir.read_json(folder / "ppo" / rundir.SUMMARY)
    rows = [
        (linked(folder, name), one["outcome"], duration(one["wall_s"]))
        for name, one in stages.items()
    ]
    total = sum(one["wall_s"] for one in stages.values())
    lines = [f"# {folder.resolve().name}: {len(stages)} stages in {duration(total)}", ""]
    lines += table(("stage", "what it came to", "time"), rows)
    if answers := right_answers(stages):
        lines += ["## Held-out records", "", *table(("after", *answers[0]), answers[1])]
    if (folder / "ppo" / REWARDS).exists():
        shows = "rewards over the steps of the last stage, and over the distance from its start"
        lines += [f"![{shows}](ppo/{REWARDS})", ""]
    lines += samples(last.get("samples", ()))
    lines += ["## Where it ran", "", *(f"- {name}: {value}" for name, value in where(spec, last))]
    return "\n".join([*lines, "", *fenced(spec["stamp"]["command"], "sh")])


def linked(folder: Path, stage: str) -> str:
    there = (folder / stage / rundir.REPORT).exists()
    return f"[{stage}]({stage}/{rundir.REPORT})" if there else stage


def right_answers(stages: Told) -> tuple[tuple[str, ...], list[tuple[str, ...]]] | None:
    """Headings and rows, of the stages whose model answers."""
    of = {name: one for name, one in stages.items() if name in ("sft", "ppo")}
    measures = {"exact_match": "exact match", "eval_loss_last": "loss"}
    known = [k for k in measures if all(one.get(k) is not None for one in of.values())]
    if not known:
        return None
    rows = [(name, *(f"{one[key]:.4g}" for key in known)) for name, one in of.items()]
    return tuple(measures[key] for key in known), rows
