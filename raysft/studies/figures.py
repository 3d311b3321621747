"""What the figures of all reports have in common: size, colours, axes, and no need of a screen."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BLUE, ORANGE, GREY, RED = "#1f5fa8", "#d97706", "#9ca3af", "#b91c1c"
DOTS_PER_INCH = 130
LOG_BEYOND = 2.5  # times from the least to the greatest loss


def new_figure(width: float, height: float, layout: Any = "constrained") -> Any:
    """An empty figure of matplotlib's, of so many inches."""
    from matplotlib.figure import Figure  # without pyplot, which would ask for a screen

    return Figure(figsize=(width, height), layout=layout)


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DOTS_PER_INCH)


def step_axis(axes: Any) -> None:
    """Ticks at whole steps only, with the thousands marked; room beside the first and the last."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(x=0.04)


def loss_axis(axis: Any, set_scale: Callable[[str], None], losses: Sequence[float]) -> None:
    """Logarithmic where losses span a lot, or that of the untrained model would take all the room.

    axis: matplotlib's, x or y. Its ticks are plain numbers.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    found = [loss for loss in losses if loss > 0]
    if not found or max(found) <= LOG_BEYOND * min(found):
        return
    set_scale("log")
    wide = max(found) > 20 * min(found)
    axis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0) if wide else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
