"""The figure of `bench masking`: losses, exact match, gradients and copying over the weight."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysft.studies.figures import BLUE, GREY, ORANGE, RED, new_figure, save
from raysft.studies.masking.rows import Row, rows_of
from raysft.studies.statistics import Interval
from raysft.studies.study import Results, done


def draw(results: Results, path: Path) -> None:
    rows = rows_of(results)
    figure = new_figure(15, 4.2)
    losses, prompts, gradients, copying = figure.subplots(1, 4)
    line(losses, rows, lambda row: row.answers, "answers", BLUE)
    losses.set(title="Held-out loss of the answers", ylabel="nats a token")
    line(prompts, rows, lambda row: row.exact_match, "exact match", BLUE)
    prompts.set(title="Exact match", ylabel="share of the answers", ylim=(0, 1))
    line(gradients, rows, lambda row: row.share, "share of the norm from prompts", ORANGE)
    line(gradients, rows, lambda row: row.cosine, "cosine, prompts and answers", BLUE)
    gradients.axhline(0, color=GREY, linewidth=0.8)
    gradients.set(title="Gradients at the end", ylabel="share; cosine")
    line(copying, rows, lambda row: row.copied, "own instruction", RED)
    line(copying, rows, lambda row: row.by_chance, "another's instruction", GREY)
    found = next((case["copied"] for case in done(results) if case["copied"]), None)
    if found:
        label = "references, own instruction"
        copying.axhline(found["references"], color=BLUE, linestyle=":", label=label)
    copying.set(title="Longest run in common", ylabel="share of the answer's tokens", ylim=(0, 1))
    for axes in (losses, prompts, gradients, copying):
        axes.set_xlabel("weight of the prompts' tokens")
        axes.set_xticks(range(len(rows)), [f"{row.weight:g}" for row in rows])
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def line(
    axes: Any, rows: list[Row], value: Callable[[Row], Interval | None], label: str, color: str
) -> None:
    """Means with their intervals, at equal distances: weights from 0 on have no logarithm."""
    found = [(place, value(row)) for place, row in enumerate(rows)]
    known = [(place, one) for place, one in found if one is not None]
    if not known:
        return
    below = [0 if one.low is None else one.mean - one.low for _, one in known]
    above = [0 if one.high is None else one.high - one.mean for _, one in known]
    axes.errorbar([place for place, _ in known], [one.mean for _, one in known],
                  yerr=[below, above], fmt="o-", capsize=3, label=label, color=color)  # fmt: skip
