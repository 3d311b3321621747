"""The cases of results.json as rows: medians, rates, ratios, and what was predicted."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from raysft.studies.numbers import median, percentile
from raysft.studies.study import Results


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
    mfu: float | None  # of the measured peak, one for all rows: see peak_of
    # To the shortest length, of the median time and of FLOPs: of a step where steps have equal
    # sequences, of a token where they have equal tokens, because whole sequences are seldom equal.
    ratio: float | None
    predicted_ratio: float | None


def rows_of(results: Results, table: str) -> list[Row]:
    """The cases of one table, shortest first."""
    listed = [case for case in results["cases"] if table in case["tables"]]
    peak = peak_of(results)
    rows = []
    for case in listed:
        row = row_of(case)
        scale = case[table] / listed[0][table]
        flops = quotient(total_flops(case), total_flops(listed[0]))
        time = quotient(row.step_p50_s, median(listed[0]["step_times_s"]))
        rows.append(
            row._replace(
                ratio=quotient(time, scale),
                predicted_ratio=quotient(flops, scale),
                mfu=quotient(row.flops_per_second, peak),
            )
        )
    return rows


def peak_of(results: Results) -> float | None:
    """FLOPs a second: the one that all rates are set against, the median over the cases."""
    return median([case["peak"]["flops_per_second"] for case in results["cases"] if case["peak"]])


def row_of(case: Mapping[str, Any]) -> Row:
    """Without what takes other cases: the ratios and the share of the peak."""
    p50, flops = median(case["step_times_s"]), total_flops(case)
    rate = quotient(flops, p50)
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
        mfu=None,
        ratio=None,
        predicted_ratio=None,
    )


def total_flops(case: Mapping[str, Any]) -> float | None:
    return sum(case["predicted"]["flops"].values()) if case["predicted"] else None


def quotient(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None
