"""The figure of `bench grad-variance`: variance and noise scale over the sequence length."""

from pathlib import Path
from typing import Any

from raysft.studies.figures import BLUE, GREY, ORANGE, RED, new_figure, save
from raysft.studies.grad_variance.rows import LOSSES, Row, exponent_of, rows_of
from raysft.studies.statistics import Interval
from raysft.studies.study import Results

COLORS = {"before training": ORANGE, "after warmup": BLUE, "at the end": RED}
CLAIMED = {"summed": 1.0, "mean": -1.0}  # the exponent, were tokens independent


def draw(results: Results, path: Path) -> None:
    rows = rows_of(results)
    figure = new_figure(13, 4.6)
    panels = figure.subplots(1, 3)
    for axes, loss in zip(panels, LOSSES, strict=False):
        draw_variance(axes, results, [row for row in rows if row.loss == loss], loss)
    draw_scale(panels[2], [row for row in rows if row.loss == "mean"])
    for axes in panels:
        ticks = sorted({row.seq_len for row in rows})
        axes.set(xscale="log", yscale="log", xlabel="sequence length T, tokens")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def draw_variance(axes: Any, results: Results, rows: list[Row], loss: str) -> None:
    for when, color in COLORS.items():
        mine = [row for row in rows if row.when == when]
        slope = exponent_of(results, when, loss)
        label = when if slope is None else f"{when}: T^{slope.mean:.2f}"
        bars(axes, [row.seq_len for row in mine], [row.variance for row in mine], label, color)
    lengths, claim = sorted({row.seq_len for row in rows}), CLAIMED[loss]
    line = [rows[0].variance.mean * (length / lengths[0]) ** claim for length in lengths]
    axes.plot(lengths, line, ":", color=GREY, label=f"T^{claim:g}, independent tokens")
    axes.set(title=f"Loss {LOSSES[loss]}", ylabel="variance of the gradient, tr(Σ)")


def draw_scale(axes: Any, rows: list[Row]) -> None:
    for when, color in COLORS.items():
        mine = [row for row in rows if row.when == when]
        pairs = [(row.seq_len, row.noise_scale) for row in mine if row.noise_scale is not None]
        bars(axes, [length for length, _ in pairs], [scale for _, scale in pairs], when, color)
    axes.set(title="Noise scale of the mean loss", ylabel="tr(Σ) / ‖G‖², sequences")


def bars(axes: Any, x: list[int], values: list[Interval], label: str, color: str) -> None:
    """Means with their intervals."""
    if not x:
        return
    below = [0 if v.low is None else v.mean - v.low for v in values]
    above = [0 if v.high is None else v.high - v.mean for v in values]
    axes.errorbar(x, [v.mean for v in values], yerr=[below, above], fmt="o-", capsize=3,
                  label=label, color=color)  # fmt: skip
