"""The figure of `bench data-size`: losses, what they are made of and exact match over the size."""

from pathlib import Path
from typing import Any

from raysft.studies.data_size.rows import MATCHED, Row, power_law, rows_of
from raysft.studies.figures import BLUE, GREY, ORANGE, RED, loss_axis, new_figure, save
from raysft.studies.statistics import Interval
from raysft.studies.study import Results

COLORS = {"steps": BLUE, "epochs": ORANGE}


def draw(results: Results, path: Path) -> None:
    figure = new_figure(17, 4.2)
    heldout, training, parts, matches = figure.subplots(1, 4)
    for matched, color in COLORS.items():
        rows, words = rows_of(results, matched), MATCHED[matched]
        sizes = [row.records for row in rows]
        heldout.plot(sizes, power_law(rows), "--", color=color, linewidth=0.9)
        bars(heldout, rows, [row.heldout for row in rows], words, color)
        bars(training, rows, [row.train for row in rows], words, color)
        bars(matches, rows, [row.exact_match for row in rows], words, color)
    rows = rows_of(results, "steps")
    bars(parts, rows, [row.bias for row in rows], "bias and noise", RED)
    bars(parts, rows, [row.variance for row in rows], "variance over subsets", GREY)
    heldout.set(title="Held-out loss, power law dashed", ylabel="nats a token")
    training.set(title="Loss on the training records", ylabel="nats a token")
    parts.set(title="Held-out loss in parts, equal steps", ylabel="nats a token")
    matches.set(title="Exact match", ylabel="share of the held-out answers")
    for axes in (heldout, training, parts, matches):
        size_axis(axes, [row.records for row in rows])
    for axes in (training, parts):
        axes.set_ylim(bottom=0)
    matches.set_ylim(0, 1)
    losses = [row.heldout for matched in COLORS for row in rows_of(results, matched)]
    loss_axis(heldout.yaxis, heldout.set_yscale, [one.mean for one in losses])
    save(figure, path)


def size_axis(axes: Any, sizes: list[int]) -> None:
    axes.set(xscale="log", xlabel="training records n")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def bars(
    axes: Any,
    rows: list[Row],
    values: list[Interval] | list[Interval | None],
    label: str,
    color: str,
) -> None:
    """Means with their intervals."""
    known = [(row.records, one) for row, one in zip(rows, values, strict=True) if one is not None]
    if not known:
        return
    below = [0 if one.low is None else one.mean - one.low for _, one in known]
    above = [0 if one.high is None else one.high - one.mean for _, one in known]
    axes.errorbar([size for size, _ in known], [one.mean for _, one in known],
                  yerr=[below, above], fmt="o-", capsize=3, label=label, color=color)  # fmt: skip
