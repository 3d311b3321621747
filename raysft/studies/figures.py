"""What the figures of all studies have in common: size, colours, and that no screen is needed."""

from pathlib import Path
from typing import Any

BLUE, ORANGE, GREY, RED = "#1f5fa8", "#d97706", "#9ca3af", "#b91c1c"
DOTS_PER_INCH = 130


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib's, of so many inches."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DOTS_PER_INCH)
