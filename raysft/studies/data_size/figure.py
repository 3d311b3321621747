"""The figure of `bench data-size`: losses, what they are made of and exact match over the size."""

from pathlib import Path
from typing import Any

from raysft.studies.data_size.rows import MATCHED, Row, rows_of
from raysft.studies.figures import BLUE, GREY, ORANGE, RED, new_figure, save
from raysft.studies.statistics import Interval
from raysft.studies.study import Results

COLORS = {"steps": BLUE, "epochs": ORANGE}


def draw(results: Results, path: Path) -> None:
    figure = new_figure(15, 4.4)
    losses, parts, matches = figure.subplots(1, 3)
    for matched, color in COLORS.items():
        rows, words = rows_of(results, matched), MATCHED[matched]
        bars(losses, rows, [row.heldout for row in rows], f"held out, {words}", color)
        bars(losses, rows, [row.train for row in rows], f"training, {words}", color, "s:")
        bars(matches, rows, [row.exact_match for row in rows], words, color)
    losses.set(title="Loss of the answers", ylabel="nats a token")
    matches.set(title="Exact match", ylabel="share of the held-out answers", ylim=(0, 1))
    rows = rows_of(results, "steps")
    sizes = [row.records for row in rows]
    told = [(row.records, row.bias, row.variance) for row in rows if row.variance is not None]
    for column, color, label in ((1, RED, "bias and noise"), (2, GREY, "variance")):
        if told:  # by more than one subset
            values = [row[column] for row in told]
            parts.plot([row[0] for row in told], values, "o-", color=color, label=label)
    parts.set(title="What the held-out loss is made of, equal steps", ylabel="nats a token")
    for axes in (losses, parts, matches):
        axes.set(xscale="log", xlabel="training records n")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def bars(
    axes: Any,
    rows: list[Row],
    values: list[Interval] | list[Interval | None],
    label: str,
    color: str,
    style: str = "o-",
) -> None:
    """Means with their intervals."""
    known = [(row.records, one) for row, one in zip(rows, values, strict=True) if one is not None]
    if not known:
        return
    below = [0 if one.low is None else one.mean - one.low for _, one in known]
    above = [0 if one.high is None else one.high - one.mean for _, one in known]
    axes.errorbar([size for size, _ in known], [one.mean for _, one in known],
                  yerr=[below, above], fmt=style, capsize=3, label=label, color=color)  # fmt: skip
