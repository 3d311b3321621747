"""results.json of `bench seq-len` to a verdict, tables for the terminal, Markdown and a figure."""

import statistics
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from raysft.estimate.devices import device_of
from raysft.runs import rundir
from raysft.studies.hardware import machine_facts
from raysft.studies.seq_len.figure import draw
from raysft.studies.seq_len.rows import Row, row_of, rows_of
from raysft.studies.study import Point, Results, Study
from raysft.studies.tables import (
    Column,
    FittedTable,
    how_it_was_measured,
    markdown_table,
    terminal_table,
)

PLOT = "seq-len.png"
TITLES = {
    "sequences": "Equal sequences a step: what a longer sequence costs",
    "tokens": "Equal tokens a step: what the same tokens cost in longer sequences",
}


def giga_flops(row: Row) -> float | None:
    return None if row.flops_per_second is None else row.flops_per_second / 1e9


def step_p50(row: Row) -> float | str | None:
    """How a case ended stands here where it has no steps."""
    return row.step_p50_s if row.status == "done" else row.status


COLUMNS = (
    Column("T", attrgetter("seq_len"), ",d"),
    Column("seqs", attrgetter("sequences"), ",d"),
    Column("p50 s", step_p50, ".2f"),
    Column("p95 s", attrgetter("step_p95_s"), ".2f", goes=4),
    Column("tok/s", attrgetter("tokens_per_second"), ",.0f"),
    Column("sup/s", attrgetter("supervised_tokens_per_second"), ",.0f", goes=2),
    Column("GF/s", giga_flops, ",.0f", goes=1),
    Column("MFU", attrgetter("mfu"), ".0%"),
    Column("GiB", attrgetter("memory_gib"), ".2f"),
    Column("pred.", attrgetter("predicted_memory_gib"), ".2f", goes=3),
    Column("ratio", attrgetter("ratio"), ".2f"),
    Column("pred.", attrgetter("predicted_ratio"), ".2f"),
)


def write_report(results: Results, folder: Path) -> None:
    """report.md and its figure, in `folder`."""
    draw(results, folder / PLOT)
    (folder / rundir.REPORT).write_text(markdown(results, PLOT))


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


def terminal_tables(results: Results) -> list[FittedTable]:
    def style(row: Row) -> str:
        return "" if row.status == "done" else "yellow"

    return [
        terminal_table(title, COLUMNS, rows_of(results, name), style)
        for name, title in TITLES.items()
    ]


def markdown(results: Results, plot: str) -> str:
    lines = [f"# Sequence length: {results['title']}", "", verdict(results), ""]
    lines += [f"![step time, throughput and memory over the sequence length]({plot})", ""]
    for name, title in TITLES.items():
        lines += [f"## {title}", "", *markdown_table(COLUMNS, rows_of(results, name)), ""]
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
        *how_it_was_measured("How it was measured", facts(results), results["stamp"]),
    ]
    return "\n".join(lines)


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
    rows = machine_facts(observed, gpu=on_gpu(results))
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


def words(case: Mapping[str, Any]) -> tuple[str, str]:
    told = case["status"]
    if case["step_times_s"]:
        middle = statistics.median(case["step_times_s"])
        told = (
            f"{middle:.2f} s a step, {case['tokens'] / middle:,.0f} tokens/s, "
            f"{case['peak_memory_gib']:.2f} GiB"
        )
    if case["error"]:
        told += f": {case['error']}"
    return f"{case['sequences']} x {case['seq_len']:,}", told


def points(results: Results) -> list[Point]:
    """Each case once, by its length and sequences a step."""
    rows = [row_of(case) for case in results["cases"]]
    return [
        Point(
            f"{row.seq_len:,} x {row.sequences:,}",
            row.status,
            {"p50, s": row.step_p50_s, "GiB": row.memory_gib},
        )
        for row in rows
    ]


STUDY = Study(
    name="seq-len",
    write_report=write_report,
    tables=terminal_tables,
    verdict=verdict,
    points=points,
    words=words,
)
