"""results.json of `bench seq-len` to rows, a verdict, a terminal table and Markdown."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raysft.errors import UserError
from raysft.estimate.devices import device_of
from raysft.runs import rundir
from raysft.studies.numbers import median, percentile

Results = Mapping[str, Any]
PLOT = "seq-len.png"
TITLES = {
    "sequences": "Equal sequences a step: what a longer sequence costs",
    "tokens": "Equal tokens a step: what the same tokens cost in longer sequences",
}


def read_results(path: Path) -> tuple[Path, dict[str, Any]]:
    """A results.json, or that of a run directory. Raises UserError: it is not there, or is none."""
    file = path / rundir.RESULTS if path.is_dir() else path
    try:
        results: dict[str, Any] = json.loads(file.read_text())
        results["cases"][0]["step_times_s"]
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}: name a results.json, or a run") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise UserError(f"{file} holds no results of `raysft bench`") from None
    return file, results


def write_report(results: Results, folder: Path) -> None:
    """report.md and its figure, in `folder`."""
    from raysft.studies.seq_len.figure import draw

    draw(results, folder / PLOT)
    (folder / rundir.REPORT).write_text(markdown(results, PLOT))


class Row(NamedTuple):
    """A case as the report shows it. None: not measured, or not predicted."""

    seq_len: int
    sequences: int
    status: str
    tokens_per_second: float | None
    supervised_tokens_per_second: float | None
    step_p50_s: float | None
    step_p95_s: float | None
    memory_gib: float | None  # of the largest worker, its peak
    predicted_memory_gib: float | None
    flops_per_second: float | None
    mfu: float | None  # of the measured peak
    # To the shortest length, of the median time and of FLOPs: of a step where steps have equal
    # sequences, of a token where they have equal tokens, because whole sequences are seldom equal.
    ratio: float | None
    predicted_ratio: float | None


def rows_of(results: Results, table: str) -> list[Row]:
    """The cases of one table, shortest first."""
    listed = [case for case in results["cases"] if table in case["tables"]]
    rows = []
    for case in listed:
        row = row_of(case)
        scale = case[table] / listed[0][table]
        flops = quotient(total_flops(case), total_flops(listed[0]))
        time = quotient(row.step_p50_s, median(listed[0]["step_times_s"]))
        rows.append(
            row._replace(ratio=quotient(time, scale), predicted_ratio=quotient(flops, scale))
        )
    return rows


def row_of(case: Mapping[str, Any]) -> Row:
    """Without the ratios."""
    p50, flops = median(case["step_times_s"]), total_flops(case)
    rate = quotient(flops, p50)
    peak = case["peak"]
    predicted = case["predicted"]
    return Row(
        seq_len=case["seq_len"],
        sequences=case["sequences"],
        status=case["status"],
        tokens_per_second=quotient(case["tokens"], p50),
        supervised_tokens_per_second=quotient(case["supervised_tokens"], p50),
        step_p50_s=p50,
        step_p95_s=percentile(case["step_times_s"], 95),
        memory_gib=case["peak_memory_gib"],
        predicted_memory_gib=sum(predicted["memory_gib"].values()) if predicted else None,
        flops_per_second=rate,
        mfu=rate / peak["flops_per_second"] if rate and peak else None,
        ratio=None,
        predicted_ratio=None,
    )


def total_flops(case: Mapping[str, Any]) -> float | None:
    return sum(case["predicted"]["flops"].values()) if case["predicted"] else None


def quotient(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None


def verdict(results: Results) -> str:
    """The question of the study, answered in a sentence or two."""
    rows = rows_of(results, "sequences")
    first, last = rows[0], rows[-1]
    if first.ratio is None or last.ratio is None:
        return "The shortest or the longest case did not end, so there is no ratio to tell."
    claim = (last.seq_len / first.seq_len) ** 2
    words = (
        f"A sequence of {last.seq_len:,} tokens costs {last.ratio:.2f} times one of "
        f"{first.seq_len:,}, not the {claim:.3g} times of O(T²)"
    )
    case = next(c for c in reversed(results["cases"]) if "sequences" in c["tables"])
    if case["predicted"] and last.predicted_ratio:
        parts = case["predicted"]["flops"]
        share = parts["attention"] / sum(parts.values())
        words += (
            f": by FLOPs {last.predicted_ratio:.2f} times were predicted, because attention is "
            f"only {share:.0%} of them at {last.seq_len:,}"
        )
    return words + "."


# Heading, what of a row, format.
COLUMNS: list[tuple[str, str, str]] = [
    ("T", "seq_len", ",d"),
    ("seqs", "sequences", ",d"),
    ("p50 s", "step_p50_s", ".2f"),
    ("p95 s", "step_p95_s", ".2f"),
    ("tok/s", "tokens_per_second", ",.0f"),
    ("sup/s", "supervised_tokens_per_second", ",.0f"),
    ("GF/s", "flops_per_second", ",.0f"),
    ("MFU", "mfu", ".0%"),
    ("GiB", "memory_gib", ".2f"),
    ("pred.", "predicted_memory_gib", ".2f"),
    ("ratio", "ratio", ".2f"),
    ("pred.", "predicted_ratio", ".2f"),
]


def cells(row: Row) -> list[str]:
    texts = []
    for _, name, form in COLUMNS:
        value = getattr(row, name)
        if name == "flops_per_second" and value is not None:
            value /= 1e9
        texts.append("" if value is None else format(value, form))
    if row.status != "done":
        texts[2] = row.status
    return texts


def terminal_tables(results: Results) -> list[Table]:
    tables = []
    for name, title in TITLES.items():
        table = Table(
            box=SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False
        )
        for heading, _, _ in COLUMNS:
            table.add_column(heading.strip(), justify="right")
        for row in rows_of(results, name):
            table.add_row(*cells(row), style="" if row.status == "done" else "yellow")
        tables.append(table)
    return tables


def markdown(results: Results, plot: str) -> str:
    lines = [f"# Sequence length: {results['title']}", "", verdict(results), ""]
    lines += [f"![step time, throughput and memory over the sequence length]({plot})", ""]
    for name, title in TITLES.items():
        lines += [f"## {title}", "", *markdown_table(rows_of(results, name)), ""]
    lines += ["## Memory of the largest worker, GiB", "", *memory_rows(results), ""]
    lines += [
        "Seqs: sequences a step; p50 and p95: of step times; tok/s and sup/s: all and supervised",
        "tokens a second; pred.: predicted by `raysft estimate`, before running.",
        "Ratios are to the shortest length, of median times and of the model's FLOPs: of a step in",
        "the first table, of a token in the second, whose steps are not quite equal.",
        "GiB is the peak of the largest worker "
        + ("on the GPU" if on_gpu(results) else "(resident memory of its process)")
        + ". MFU is GF/s, 1e9 FLOPs a second, as a share of the peak below.",
        "",
        "## How it was measured",
        "",
        *(f"- {name}: {value}" for name, value in facts(results)),
        "",
        "```",
        results["stamp"]["command"],
        "```",
        "",
    ]
    return "\n".join(lines)


def markdown_table(rows: Sequence[Row]) -> list[str]:
    headings = " | ".join(heading.strip() for heading, _, _ in COLUMNS)
    lines = [f"| {headings} |", "|" + "---:|" * len(COLUMNS)]
    return lines + [f"| {' | '.join(cells(row))} |" for row in rows]


def memory_rows(results: Results) -> list[str]:
    """By kind: before there is a model, with the engine before the first step, and at the peak."""
    lines = [
        "| T | seqs | before the model | with the engine | peak | predicted |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for case in results["cases"]:
        held, row = case["memory_gib"], row_of(case)
        values: list[float | None] = [None, None]
        if held:
            values = [held["process"], held["process"] + held["model states"]]
        values += [row.memory_gib, row.predicted_memory_gib]
        texts = ["" if value is None else f"{value:.2f}" for value in values]
        lines.append(f"| {row.seq_len:,} | {row.sequences:,} | {' | '.join(texts)} |")
    return lines


def on_gpu(results: Results) -> bool:
    return bool(results["config"]["scaling"]["gpus_per_worker"])


def facts(results: Results) -> list[tuple[str, str]]:
    config, bench = results["config"], results["config"]["bench"]
    engine, scaling = config["engine"], config["scaling"]
    observed = next((c["observed"] for c in results["cases"] if c["observed"]), None)
    rows: list[tuple[str, str]] = []
    if observed:
        rows.append(("hardware", hardware(observed, gpu=on_gpu(results))))
        versions = observed["versions"]
        names = ("raysft", "torch", "ray", "deepspeed", "transformers")
        rows.append(("versions", ", ".join(f"{n} {versions[n]}" for n in names)))
    sheet = device_of(observed["gpu"]) if observed and on_gpu(results) else None
    if sheet:
        rows.append(("datasheet", f"{sheet.name}, {sheet.tflops:,.0f} TFLOP/s by its maker"))
    peaks = [case["peak"] for case in results["cases"] if case["peak"]]
    if peaks:
        rates = sorted(peak["flops_per_second"] for peak in peaks)
        copies = sorted(peak["copied_bytes_per_second"] for peak in peaks)
        rows.append(
            (
                "peak",
                f"{statistics.median(rates) / 1e9:,.0f} GFLOP/s of products as the training "
                f"multiplies ({rates[0] / 1e9:,.0f} to {rates[-1] / 1e9:,.0f} over the cases), "
                f"{statistics.median(copies) / 1e9:,.0f} GB/s of copies; all workers together, "
                "measured after the steps of each case",
            )
        )
    words = [f"ZeRO stage {engine['zero_stage']}", engine["precision"]]
    words += ["activation checkpointing"] if config["model"]["activation_checkpointing"] else []
    workers, room = scaling["workers"], config["batch"]["tokens_per_micro_batch"]
    words += [
        f"{workers} worker{'' if workers == 1 else 's'} with {scaling['cpus_per_worker']} threads"
    ]
    words += [
        f"whole sequences of at most {room:,} tokens in a micro-batch"
        if room
        else f"{config['batch']['micro_batch_size']} sequences in a micro-batch"
    ]
    rows.append(("run", ", ".join(words)))
    tokens = "random tokens, all supervised" if bench["synthetic"] else (
        f"the records of {config['data']['path']}, joined end to end and cut at T"
    )  # fmt: skip
    rows.append(("data", tokens))
    rows.append(
        (
            "steps",
            f"each case in fresh workers, {bench['warmup_steps']} steps of warm-up dropped, "
            f"{bench['steps']} timed; every step time is in results.json",
        )
    )
    return rows


def hardware(observed: Mapping[str, Any], *, gpu: bool) -> str:
    device = observed["gpu"] if gpu else f"{observed['cpu']} (CPU figures)"
    return f"{device}, {observed['cpu_count']} cores, {observed['memory_gib']} GiB"
