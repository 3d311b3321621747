"""The figure of `bench stability`: losses over the rate, largest stable rates, and loss spikes."""

from pathlib import Path
from typing import Any

from raysft.studies.figures import BLUE, GREY, ORANGE, RED, new_figure, save
from raysft.studies.stability.curves import AFTER, BEFORE
from raysft.studies.stability.rows import Row, around_spikes, rows_of, usual_ratio
from raysft.studies.stability.thresholds import values_of
from raysft.studies.stability.words import of_row, of_value
from raysft.studies.study import Results

COLORS = (BLUE, ORANGE, RED, GREY)  # of warmups
STYLES = ("o-", "s--", "^:", "d-.")  # of clippings
ROOM = 1.5  # times the greatest mean: intervals of few seeds may reach beyond
APART = 0.04  # between the marks of combinations, as a share of their rate


def draw(results: Results, path: Path) -> None:
    rows, precisions = rows_of(results), values_of(results, "precision")
    figure = new_figure(5.2 * len(precisions) + 10.4, 1.6 + max(3.6, 0.27 * len(rows)))
    *losses, limits, moments = figure.subplots(1, len(precisions) + 2)
    for axes, precision in zip(losses, precisions, strict=True):
        draw_losses(axes, [row for row in rows if row.precision == precision], results)
        axes.set_title(f"Held-out loss, {precision}")
    for axes in losses[1:]:
        axes.sharey(losses[0])
    losses[0].legend(frameon=False, fontsize=7)
    draw_limits(limits, rows)
    draw_moments(moments, results)
    for axes in (*losses, limits, moments):
        axes.grid(alpha=0.3)
    save(figure, path)


def look(results: Results, row: Row) -> tuple[str, str]:
    """Colour and style of a combination."""
    warmup = values_of(results, "warmup_ratio").index(row.warmup_ratio)
    clipping = values_of(results, "max_grad_norm").index(row.max_grad_norm)
    return COLORS[warmup % len(COLORS)], STYLES[clipping % len(STYLES)]


def draw_losses(axes: Any, rows: list[Row], results: Results) -> None:
    """Means of the runs that held, with their intervals; a cross at the top where some diverged."""
    for number, row in enumerate(rows):
        color, style = look(results, row)
        aside = (1 + APART) ** (number - (len(rows) - 1) / 2)
        known = [(lr, at.eval_loss) for lr, at in row.at.items() if at.eval_loss is not None]
        label = ", ".join(of_value(name, getattr(row, name)) for name in NAMED)
        below = [0 if one.low is None else one.mean - one.low for _, one in known]
        above = [0 if one.high is None else one.high - one.mean for _, one in known]
        axes.errorbar([lr * aside for lr, _ in known], [one.mean for _, one in known],
                      yerr=[below, above], fmt=style, color=color, label=label, ms=3.5, lw=1,
                      capsize=2, elinewidth=0.8)  # fmt: skip
        for lr, at in row.at.items():
            if at.diverged:
                axes.plot(lr * aside, 0.98, "x", color=color, ms=5, clip_on=False,
                          transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set(xscale="log", xlabel="learning rate (x: some runs diverged)", ylabel="nats a token")
    means = [at.eval_loss.mean for row in rows for at in row.at.values() if at.eval_loss]
    axes.set_ylim(0, ROOM * max(means, default=1.0))


NAMED = ("warmup_ratio", "max_grad_norm")


def draw_limits(axes: Any, rows: list[Row]) -> None:
    """An interval for each combination, with an arrow where no rate diverged."""
    for place, row in enumerate(reversed(rows)):
        at = row.threshold
        ends = [end for end in (at.low, at.high) if end is not None]
        if not ends:
            continue
        axes.plot(ends, [place] * len(ends), "-", color=BLUE, lw=2)
        for end, mark in ((at.low, "|"), (at.high, "|")):
            if end is not None:
                axes.plot(end, place, mark, color=BLUE, ms=9)
        if at.stable is not None:
            axes.plot(at.stable, place, "o", color=BLUE, ms=4)
        if at.low is None or at.high is None:
            axes.plot(ends[0], place, ">" if at.high is None else "<", color=BLUE, ms=6)
    axes.set_yticks(range(len(rows)), [of_row(row) for row in reversed(rows)], fontsize=7)
    axes.set(xscale="log", xlabel="learning rate", title="Largest stable rate, 95 % intervals")


def draw_moments(axes: Any, results: Results) -> None:
    steps = range(-BEFORE, AFTER + 1)
    found = list(zip(steps, around_spikes(results), strict=True))
    known = [(step, one) for step, one in found if one is not None]
    below = [0 if one.low is None else one.mean - one.low for _, one in known]
    above = [0 if one.high is None else one.high - one.mean for _, one in known]
    if known:
        axes.errorbar([step for step, _ in known], [one.mean for _, one in known],
                      yerr=[below, above], fmt="o-", color=RED, capsize=3, ms=4,
                      label="around loss spikes")  # fmt: skip
    if (usual := usual_ratio(results)) is not None:
        axes.axhline(usual, color=GREY, lw=1.2, label="median of all updates")
    axes.axhline(1, color=GREY, lw=1, ls=":", label="as it expects")
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set(title="Adam's second moment at loss spikes", ylabel="moment ratio",
             xlabel="optimizer steps from the spike")  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
