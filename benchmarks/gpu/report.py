"""What a run of run.py comes to: a verdict for each goal, and tables, as Markdown."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Line = Mapping[str, Any]


WORK = ("doctor", "train", "zero3", "kill", "adapter", "ppo", "prove", "chain")


class Goal(NamedTuple):
    words: str
    found: Callable[[Mapping[str, Line]], float | None]  # of the lines by their check
    least: float  # or the most, where `below`
    form: str = ".1%"
    below: bool = False


def rate(lines: Mapping[str, Line], name: str) -> float | None:
    row = lines["compare"].get("table", {}).get(name)
    return float(row["tokens_per_second"]["median"]) if row else None


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def memory_gap(lines: Mapping[str, Line]) -> float | None:
    found = ratio(lines["train"].get("peak_memory_gib"), lines["train"].get("predicted_memory_gib"))
    return abs(found - 1) if found else None


GOALS = (
    Goal("GPT-2 Large at ZeRO-1, share of the datasheet's peak",
         lambda lines: lines["train"].get("mfu_datasheet"), 0.45),
    Goal("GPT-2 Large at ZeRO-3, share of the datasheet's peak",
         lambda lines: lines["zero3"].get("mfu_datasheet"), 0.35),
    Goal("ZeRO-1 to a bare loop with the same kernels",
         lambda lines: ratio(rate(lines, "raysft-zero1"), rate(lines, "bare")), 0.95, ".2f"),
    Goal("ZeRO-1 to TRL with packing",
         lambda lines: ratio(rate(lines, "raysft-zero1"), rate(lines, "trl-packed")), 1.5, ".2f"),
    Goal("memory beside the estimate, off by at most", memory_gap, 0.1, ".1%", below=True),
    Goal("first step after the command, s, at most",
         lambda lines: lines["train"].get("first_step_s"), 25.0, ".1f", below=True),
)  # fmt: skip


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def markdown(results: Path, command: str) -> str:
    lines = read(results)
    by_check = {name: {} for name in ("env", "compare", *WORK)}
    by_check |= {line["check"]: line for line in lines if "check" in line}
    env = by_check["env"]
    gpu = env.get("gpu")
    versions = ", ".join(f"{name} {found}" for name, found in env.get("versions", {}).items())
    head = f"# raysft on {gpu or 'a CPU'}"
    if not gpu:
        head += "\n\nNo GPU was there: these figures show that the script runs, and nothing else."
    tables = [verdicts(by_check), checks(by_check), peers(by_check["compare"])]
    for part, columns in COLUMNS.items():
        tables.append(table(part, columns, [line for line in lines if line.get("part") == part]))
    taken = [(x["step"], f"{x['seconds']:.0f}") for x in lines if x.get("check") == "seconds"]
    tables.append(rows("Seconds that each step took", ("step", "s"), taken))
    tables += (
        [f"## bench seq-len\n\n{by_check['bench']['report']}"]
        if "report" in by_check.get("bench", {})
        else []
    )
    about = f"Python {env.get('python')}, {env.get('cpus')} CPUs, {versions}."
    return "\n\n".join([head, about, *filter(None, tables), f"```\n{command}\n```"]) + "\n"


def verdicts(by_check: Mapping[str, Line]) -> str:
    listed = []
    for goal in GOALS:
        found = goal.found(by_check) if "gpu" in by_check["env"] else None
        holds = found is not None and (found <= goal.least if goal.below else found >= goal.least)
        verdict = "not measured" if found is None else "holds" if holds else "falls short"
        value = "" if found is None else format(found, goal.form)
        listed.append((goal.words, format(goal.least, goal.form), value, verdict))
    return rows("Goals", ("", "goal", "found", "verdict"), listed)


def checks(by_check: Mapping[str, Line]) -> str:
    """Of what works, with what was said of it."""
    listed = []
    for name in WORK:
        line = by_check[name]
        words = line.get("error") or line.get("failed") or line.get("words") or ""
        if "left_out" in line or not line:
            words = "left out"
        if name == "kill" and line:
            words = (
                f"{line.get('num_restarts')} restart, generate ended with {line.get('generate')}"
            )
        listed.append((name, str(line.get("exit_code", "")), words))
    return rows("Does it work", ("", "exit code", ""), listed)


def peers(line: Line) -> str:
    listed = [
        (name, f"{row['tokens_per_second']['median']:,.0f}",
         f"{row['peak_memory_gib']['median']:.1f}", f"{row['heldout_loss']['median']:.3f}")
        for name, row in sorted(
            line.get("table", {}).items(), key=lambda item: -item[1]["tokens_per_second"]["median"]
        )
    ]  # fmt: skip
    return rows("Peers, on the same records", ("", "tokens/s", "GiB", "held-out loss"), listed)


COLUMNS: dict[str, tuple[str, ...]] = {
    "step": ("stage", "recomputes", "tokens", "leaf", "compile", "profile", "step_s",
             "tokens_per_second", "tflops", "mfu_datasheet", "peak_memory_gib", "waits",
             "waits_of_twice_as_many", "failed"),
    "linear": ("shape", "tflops", "ms", "host_ms"),
    "copy": ("gbs", "ms"),
    "first call with cuDNN": ("length", "ms"),
    "attention": ("case", "records", "variant", "ms", "host_ms", "gap"),
    "head": ("tokens", "variant", "block_mib", "ms", "tflops"),
}  # fmt: skip
TITLES = {
    "step": "Whole steps of synthetic records, without Ray",
    "linear": "Products",
    "copy": "Copies",
}


def table(part: str, columns: Iterable[str], lines: list[dict[str, Any]]) -> str:
    shown = [name for name in columns if any(line.get(name) is not None for line in lines)]
    listed = [tuple(cell(line.get(name)) for name in shown) for line in lines]
    return rows(TITLES.get(part, part.capitalize()), shown, listed)


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def rows(title: str, headings: Iterable[str], listed: Iterable[tuple[str, ...]]) -> str:
    listed = list(listed)
    if not listed:
        return ""
    headings = list(headings)
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return f"## {title}\n\n" + "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in listed)])
