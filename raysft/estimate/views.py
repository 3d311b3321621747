"""What `raysft estimate` shows: its dict as tables and sentences."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

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


def new_table(title: str, headings: Sequence[str], caption: str | None = None) -> Table:
    table = Table(
        box=SIMPLE_HEAD, title=title, title_justify="left", caption=caption, caption_justify="left"
    )
    table.add_column(headings[0])
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table


def parameters_table(facts: Facts) -> Table:
    parts = facts["parameters"]
    total = sum(parts.values())
    table = new_table("Parameters", ["part", "parameters", "share"])
    for name, count in parts.items():
        table.add_row(name, f"{count:,}", f"{count / total:.1%}")
    table.add_row("all", f"{total:,}", "", style="bold")
    return table


def flops_table(facts: Facts) -> Table:
    table = new_table(
        "Forward and backward, MFLOPs a token",
        ["T", "linear", "attention", "head", "all", "attention's share", "a sequence, to 512"],
        "A record of T tokens, all supervised. O(T²) alone would make 1,024 cost 4 times 512.",
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
    ("gradients", ("gradients",)),
    ("master", ("master weights",)),
    ("Adam", ("Adam moments",)),
    ("gathered", ("gathered weights",)),
    ("activations", ("activations", "work of a layer")),
    ("loss, buffers", ("loss", "raw gradients", "update")),
    ("process", ("process",)),
)


def memory_table(facts: Facts) -> Table:
    device = facts["device_memory_gib"]
    table = new_table(
        "Memory of a worker at its fullest, GiB",
        ["", *(heading for heading, _ in MEMORY_COLUMNS), "all", "fits" if device else ""],
        f"{device:.1f} GiB a worker" if device else None,
    )
    for row in facts["memory_gib"]:
        name = row["choice"]
        if row["activation_checkpointing"]:
            name = "  with activation checkpointing"
        values = [
            sum(row["parts"].get(part, 0.0) for part in parts) for _, parts in MEMORY_COLUMNS
        ]
        fits = ("yes" if row["total"] <= device else "no") if device else ""
        chosen = row["choice"] == facts["chosen"] and not row["activation_checkpointing"]
        table.add_row(
            name,
            *(f"{value:.2f}" if value else "" for value in values),
            f"{row['total']:.2f}",
            fits,
            style="bold" if chosen else "",
        )
    return table


def traffic_table(facts: Facts) -> Table:
    table = new_table("A worker sends in a step, GB", ["", "gradients", "weights", "all"])
    for name, parts in facts["traffic_gb"].items():
        table.add_row(
            name,
            *(f"{parts[part]:.2f}" for part in ("gradients", "weights")),
            f"{sum(parts.values()):.2f}",
        )
    return table


def scaling_table(facts: Facts, kind: str, title: str) -> Table:
    scaling = facts["scaling"]
    link = scaling["link_gbs"]
    table = new_table(
        title,
        ["workers", "sequences a step", "compute, s", "traffic, s", "update, s", "step, s", "speed"],
        f"At a peak of {scaling['peak_tflops']:,.0f} TFLOP/s"
        + (f" and {link:,.0f} GB/s between workers" if link else ", links taken to cost nothing")
        + ": a bound that no run reaches. "
        "A step lies between traffic fully overlapped and in turn; speed is in sequences, to 1 "
        "worker, in turn.",
    )
    rows = [row for row in scaling[kind] if row["workers"] in SHOWN_WORKERS]
    for row in rows:
        speed = row["sequences"] / row["in_turn_s"] * rows[0]["in_turn_s"] / rows[0]["sequences"]
        table.add_row(
            f"{row['workers']:,}",
            f"{row['sequences']:,}",
            *(f"{row[key]:.3f}" for key in ("compute_s", "traffic_s", "update_s")),
            f"{row['overlapped_s']:.3f} to {row['in_turn_s']:.3f}",
            f"{speed:,.1f} x",
        )
    return table


def sentences(facts: Facts) -> list[str]:
    lines = []
    largest, device = facts["largest_micro_batch"], facts["device_memory_gib"]
    if largest is not None:
        lines.append(
            f"The largest micro-batch of {facts['chosen']} that fits into {device:.1f} GiB has "
            f"{largest:,} sequences."
        )
    return [*lines, *facts["advice"]]
