"""A run directory to report.md and its figure: what one would send to a colleague."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from raysft.runs import rundir
from raysft.runs.metrics import duration
from raysft.studies.hardware import machine_facts

FIGURE, REWARDS = "report.png", "rewards.png"
Facts = Mapping[str, Any]
# Of a summary: what each row says, its first and its last value.
Closing = Callable[[Facts], list[tuple[str, str, str]]]


def write_report(run_dir: Path, closing: Closing) -> None:
    """report.md and report.png, of whatever the folder holds. Raises UserError and OSError."""
    spec = rundir.read_run(run_dir / rundir.RUN, "config", "stamp")
    summary: Facts = {}
    if (run_dir / rundir.SUMMARY).exists():
        summary = rundir.read_json(run_dir / rundir.SUMMARY)
    lines = read_metrics(run_dir / rundir.METRICS)
    if lines:
        from raysft.studies.training.figure import draw

        limit = clipped_to(spec["config"])
        draw(run_dir / FIGURE, lines, run_dir.resolve().name, max_grad_norm=limit)
    figures = {"losses, rate, gradient norm and throughput over the steps": FIGURE} if lines else {}
    if any("reward" in line for line in lines):
        from raysft.studies.training.rewards import draw_rewards

        draw_rewards(run_dir / REWARDS, lines, run_dir.resolve().name)
        figures["rewards over the steps, and over the distance from the reference"] = REWARDS
    text = markdown(run_dir, spec, summary, closing, figures)
    (run_dir / rundir.REPORT).write_text(text)


def clipped_to(config: Facts) -> float:
    """What gradients are clipped to; 0 for never."""
    return config.get("optim", {}).get("max_grad_norm") or 0.0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or of samples.jsonl, that are whole."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with suppress(ValueError, KeyError, TypeError):
            values = json.loads(line)
            found.append({**values, "step": int(values["step"])})
    return found


def markdown(
    run_dir: Path, spec: Facts, summary: Facts, closing: Closing, figures: Mapping[str, str]
) -> str:
    """figures: what each shows, and its file."""
    lines = [f"# {run_dir.resolve().name}: {rundir.status(run_dir)}", ""]
    if summary.get("error") and summary["status"] == "failed":
        lines += indented(str(summary["error"]))
    for shows, file in figures.items():
        lines += [f"![{shows}]({file})", ""]
    if rows := closing(summary):
        lines += ["## Outcome", "", *table(("", "first", "last"), rows)]
    if "data" in summary:
        lines += ["## Data", "", *data(summary["data"])]
    lines += on_the_way(read_metrics(run_dir / rundir.SAMPLES))
    lines += samples(summary.get("samples", ()))
    lines += restarts(summary.get("restarts", ()))
    lines += phases(summary.get("phases_s", {}))
    lines += ["## Settings that are not defaults", "", *fenced(settings(spec["config"]), "toml")]
    lines += [
        "## Where it ran",
        "",
        *(f"- {name}: {value}" for name, value in where(spec, summary)),
    ]
    lines += ["", *fenced(spec["stamp"]["command"], "sh")]
    return "\n".join(lines)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    ruler = "|---|" + "---:|" * (len(headings) - 1)
    body = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return [f"| {' | '.join(headings)} |", ruler, *body, ""]


def indented(text: str) -> list[str]:
    """As it is, whatever marks it holds."""
    return [*(f"    {line}" for line in text.splitlines() or [""]), ""]


def fenced(text: str, language: str) -> list[str]:
    return [f"```{language}", text.strip(), "```", ""]


def data(facts: Facts) -> list[str]:
    """The audit in brief."""
    rows = [
        (f"{source['path']}, {source['format']}", f"{source['records']:,}")
        for source in facts["sources"]
    ]
    rows += [
        ("trained on", f"{facts['num_records']:,}"),
        ("held out", f"{facts['num_eval_records']:,}"),
        ("left out", f"{facts['num_dropped']:,}"),
    ]
    prompt, response = facts["prompt_tokens"], facts["response_tokens"]
    words = (
        f"Template {facts['template']}, answers end in `{facts['end_token']}`. "
        f"{facts['tokens']:,} tokens, {facts['supervised_share']:.0%} of them supervised; a prompt "
        f"has {prompt['mean']:,.0f} and a response {response['mean']:,.0f} on average, and "
        f"{prompt['max']:,.0f} and {response['max']:,.0f} at most."
    )
    found = [
        f"- {row['records']:,}: {row['message']}. What to do: {row['advice']}."
        for row in facts["findings"]
    ]
    return [*table(("records", "count"), rows), words, "", *found, *([""] if found else [])]


def samples(found: Sequence[Facts]) -> list[str]:
    if not found:
        return []
    lines = ["## Answers to held-out records", ""]
    for sample in found:
        for name in ("instruction", "reference", "answer"):
            lines += [f"{name}:", "", *indented(sample[name])]
    return lines


def on_the_way(lines: Sequence[Facts]) -> list[str]:
    """How the answers to each question changed: lines of samples.jsonl."""
    if not lines:
        return []
    told = ["## Answers on the way", ""]
    for instruction in dict.fromkeys(line["instruction"] for line in lines):
        of_it = [line for line in lines if line["instruction"] == instruction]
        told += ["instruction:", "", *indented(instruction)]
        told += ["reference:", "", *indented(of_it[0]["reference"])]
        before = None
        for line in of_it:
            if line["answer"] != before:
                told += [f"after step {line['step']:,}:", "", *indented(line["answer"])]
            before = line["answer"]
    return told


def restarts(found: Sequence[Facts]) -> list[str]:
    if not found:
        return []
    rows = [
        (
            str(one["step"]),
            str(one["workers"]),
            duration(one["seconds"]),
            one["reason"].splitlines()[0],
        )
        for one in found
    ]
    return ["## Restarts", "", *table(("from step", "workers", "took", "why"), rows)]


def phases(seconds: Mapping[str, float]) -> list[str]:
    total = sum(seconds.values())
    if not total:
        return []
    rows = [(name, f"{value:.1f}", f"{value / total:.0%}") for name, value in seconds.items()]
    return ["## Where the time went", "", *table(("phase", "seconds", "share"), rows)]


def settings(config: Facts) -> str:
    """As TOML, which `raysft train` takes."""
    import tomli_w

    from raysft.config.load import validate

    kept = validate(dict(config), where=rundir.RUN)
    return tomli_w.dumps(kept.model_dump(mode="json", exclude_defaults=True, exclude_none=True))


def where(spec: Facts, summary: Facts) -> list[tuple[str, str]]:
    stamp, workers = spec["stamp"], summary.get("workers") or {}
    rows = [("submitted", str(stamp.get("utc")))]
    if stamp.get("git_sha"):
        changed = ", with changes" if stamp.get("git_dirty") else ""
        rows.append(("raysft", f"{stamp['version']}, commit {stamp['git_sha'][:12]}{changed}"))
    if workers:
        rows.append(("workers", f"{workers['world_size']}, {workers['parameters']:,} parameters"))
    gpu = bool(spec["config"].get("scaling", {}).get("gpus_per_worker"))
    return rows + machine_facts(workers.get("observed"), gpu=gpu)
