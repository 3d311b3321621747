"""What `raysft estimate` shows: its dict as tables and sentences."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from raysft.studies.tables import FittedTable, Heading

Facts = Mapping[str, Any]
SHOWN_WORKERS = (1, 2, 4, 8, 16, 64, 256, 1024)


def renderables(facts: Facts) -> Iterable[RenderableType]:
    yield parameters_table(facts)
    yield flops_table(facts)
    yield memory_table(facts)
    if facts["scaling"] is None:
        yield traffic_table(facts)
    else:
        yield scaling_table(facts, "weak", "Weak scaling: each worker keeps its sequences")
        yield scaling_table(facts, "strong", "Strong scaling: all workers share the same batch")
    for line in sentences(facts):
        yield Text(line)


def new_table(
    title: str, headings: Sequence[str], caption: str | None = None, *, going: Sequence[str] = ()
) -> FittedTable:
    """going: headings of columns that a narrow terminal does without, the least important first."""
    order = {heading: number for number, heading in enumerate(going, start=1)}
    columns = [
        Heading(heading, "right" if number else "left", order.get(heading, 0), folds=not number)
        for number, heading in enumerate(headings)
    ]
    return FittedTable(title, columns, caption)


def parameters_table(facts: Facts) -> FittedTable:
    parts = facts["parameters"]
    total = sum(parts.values())
    table = new_table("Parameters", ["part", "parameters", "share"])
    for name, count in parts.items():
        table.add_row(name, f"{count:,}", f"{count / total:.1%}")
    table.add_row("all", f"{total:,}", "", style="bold")
    if (trained := facts["trained"]) < total:
        table.add_row("adapter, which is trained", f"{trained:,}", f"{trained / total:.2%}")
    return table


def flops_table(facts: Facts) -> FittedTable:
    table = new_table(
        "Forward and backward, MFLOPs a token",
        ["T", "linear", "attention", "head", "all", "share of\nattention", "whole\nsequence"],
        "A record of T tokens, all supervised. The last column is a whole sequence to one of 512: "
        "O(T²) alone would make 1,024 cost 4 times as much.",
    )
    rows = {int(length): parts for length, parts in facts["flops_per_token"].items()}
    reference = sum(rows[512].values()) * 512 if 512 in rows else None
    for length, parts in rows.items():
        total = sum(parts.values())
        table.add_row(
            f"{length:,}",
            *(f"{parts[name] / 1e6:,.0f}" for name in ("linear", "attention", "head")),
            f"{total / 1e6:,.0f}",
            f"{parts['attention'] / total:.1%}",
            f"{total * length / reference:.2f}" if reference else "",
        )
    return table


# Heading, the parts that it sums.
MEMORY_COLUMNS = (
    ("weights", ("weights",)),
    ("grads", ("gradients",)),
    ("master", ("master weights",)),
    ("Adam", ("Adam moments",)),
    ("activ.", ("activations", "work of a layer")),
    ("other", ("gathered weights", "loss", "raw gradients", "update", "process")),
)
LEGEND = (
    "A: with activation checkpointing, O: optimizer offloaded, P: parameters offloaded. "
    "Other: gathered weights, blocks of logits, gradients before they are reduced, the update's "
    "buffers, and on a CPU the process itself."
)


def memory_table(facts: Facts) -> FittedTable:
    device = facts["device_memory_gib"]
    headings = ["", *(heading for heading, _ in MEMORY_COLUMNS), "all"]
    table = new_table(
        f"Memory of a worker, GiB; {facts['micro_batch_tokens']:,} tokens in a micro-batch",
        [*headings, "fits"] if device else headings,
        "At its fullest" + (f", of {device:.1f} GiB. " if device else ". ") + LEGEND,
        going=("other", "grads"),
    )
    for row in facts["memory_gib"]:
        values = [sum(row["parts"].get(part, 0.0) for part in parts) for _, parts in MEMORY_COLUMNS]
        fits = [("yes" if row["total"] <= device else "no")] if device else []
        table.add_row(
            row["choice"],
            *(f"{value:.2f}" if value else "" for value in values),
            f"{row['total']:.2f}",
            *fits,
            style="bold" if row["choice"] == facts["chosen"] else "",
        )
    return table


def traffic_table(facts: Facts) -> FittedTable:
    table = new_table("A worker sends in a step, GB", ["", "gradients", "weights", "all"])
    for name, parts in facts["traffic_gb"].items():
        table.add_row(
            name,
            *(f"{parts[part]:.2f}" for part in ("gradients", "weights")),
            f"{sum(parts.values()):.2f}",
        )
    return table


def scaling_table(facts: Facts, kind: str, title: str) -> FittedTable:
    scaling = facts["scaling"]
    link = scaling["link_gbs"]
    table = new_table(
        title,
        ["workers", "sequences", "compute", "traffic", "update", "least", "most", "speed"],
        f"Seconds, at a peak of {scaling['peak_tflops']:,g} TFLOP/s"
        + (f" and {link:,.0f} GB/s between workers" if link else ", links taken to cost nothing")
        + ("" if scaling["memory_gbs"] else ", and so the update")
        + ": a bound that no run reaches. Least: all traffic beside computation; most: none of "
        "it. Speed: sequences a second to those of 1 worker, by the most.",
        going=("update", "traffic"),
    )
    rows = [row for row in scaling[kind] if row["workers"] in SHOWN_WORKERS]
    for row in rows:
        speed = row["sequences"] / row["in_turn_s"] * rows[0]["in_turn_s"] / rows[0]["sequences"]
        times = ("compute_s", "traffic_s", "update_s", "overlapped_s", "in_turn_s")
        table.add_row(
            f"{row['workers']:,}",
            f"{row['sequences']:,}",
            *(f"{row[key]:.3f}" for key in times),
            f"{speed:,.1f}",
        )
    return table


def sentences(facts: Facts) -> list[str]:
    kept = facts["activations_gib"]
    lines = [f'"auto" comes to {facts["auto"]}.'] if facts["auto"] else []
    if beside := facts["beside_gib"]:
        parts = ", ".join(f"{name} {size:.2f}" for name, size in beside.items() if size)
        lines.append(
            f"Every worker holds {sum(beside.values()):.2f} GiB beside its engine ({parts}), which "
            "the memory above is without."
        )
        work = facts["iteration_flops"]
        parts = ", ".join(f"{name} {count / 1e12:,.2f}" for name, count in work.items())
        lines.append(f"An iteration at its longest computes, in TFLOPs: {parts}.")
    lines += [
        f"Activations are {kept['sdpa']:.2f} GiB; attention that keeps its T x T probabilities "
        f'(model.attention = "eager") would make them {kept["eager"]:.2f}.'
    ]
    largest, device = facts["largest_micro_batch"], facts["device_memory_gib"]
    if largest is not None:
        lines.append(
            f"The largest micro-batch of {facts['chosen']} that fits into {device:.1f} GiB has "
            f"{largest:,} sequences."
        )
    return [*lines, *facts["advice"]]
