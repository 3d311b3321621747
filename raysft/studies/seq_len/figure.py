"""The figure of `bench seq-len`: step time, throughput and memory over the sequence length."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysft.studies.figures import BLUE, GREY, ORANGE, new_figure, save
from raysft.studies.seq_len.rows import Row, rows_of

MEASURED, PREDICTED, CLAIMED = BLUE, ORANGE, GREY


def draw(results: Mapping[str, Any], path: Path) -> None:
    by_sequences = [row for row in rows_of(results, "sequences") if row.ratio is not None]
    by_tokens = [row for row in rows_of(results, "tokens") if row.ratio is not None]
    figure = new_figure(13, 4.2)
    figure.suptitle(results["title"])
    time, rate, memory = figure.subplots(1, 3)
    if by_sequences:
        draw_ratio(time, by_sequences)
    for rows, word, color in (
        (by_sequences, "sequences", MEASURED),
        (by_tokens, "tokens", PREDICTED),
    ):
        line(rate, rows, lambda r: r.tokens_per_second, f"equal {word} a step", color, "o-")
    rate.set(title="Throughput", ylabel="tokens/s")
    line(memory, by_sequences, lambda r: r.memory_gib, "measured", MEASURED, "o-")
    line(memory, by_sequences, lambda r: r.predicted_memory_gib, "predicted", PREDICTED, "s--")
    memory.set(title="Peak memory of the largest worker", ylabel="GiB")
    for axes in (time, rate, memory):
        axes.set_xlabel("sequence length T, tokens")
        axes.set_xticks([row.seq_len for row in by_sequences])
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    save(figure, path)


def draw_ratio(axes: Any, rows: Sequence[Row]) -> None:
    shortest = rows[0].seq_len
    line(axes, rows, lambda r: (r.seq_len / shortest) ** 2, "O(T²)", CLAIMED, ":")
    line(axes, rows, lambda r: r.predicted_ratio, "predicted by FLOPs", PREDICTED, "s--")
    line(axes, rows, lambda r: r.ratio, "measured", MEASURED, "o-")
    axes.set(title="Step time, equal sequences a step", ylabel=f"times that of T = {shortest}")


def line(
    axes: Any,
    rows: Sequence[Row],
    value: Callable[[Row], float | None],
    label: str,
    color: str,
    style: str,
) -> None:
    points = [(row.seq_len, value(row)) for row in rows if value(row) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), style, label=label, color=color)
