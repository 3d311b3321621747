"""The figure of `bench over-optimization`, as Gao et al. 2022 (figure 1) draw it: what is trained
and what is wanted, over the square root of the distance from the start."""

import math
from pathlib import Path
from typing import Any

from raysft.studies.figures import new_figure, save
from raysft.studies.over_optimization.curves import betas_of, parts_of, runs_of
from raysft.studies.study import Results

PANELS = (("reward", "Reward, which is trained"), ("checked", "Checker's, which is wanted"))


def draw(results: Results, path: Path) -> None:
    figure = new_figure(11, 4.2)
    for axes, (key, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        panel(axes, results, key)
        axes.set(title=title, xlabel="√KL(pi, pi_ref), √nats an answer", ylabel="of a drawn answer")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, title="beta")
    save(figure, path)


def panel(axes: Any, results: Results, key: str) -> None:
    """A faint line for each run, and marks for its parts."""
    import matplotlib

    betas = betas_of(results)
    colors = matplotlib.colormaps["viridis"]
    for number, beta in enumerate(betas):
        color = colors(0.9 * number / max(1, len(betas) - 1))
        for run_number, run in enumerate(runs_of(results, beta)):
            drawn, parts = run["drawn"], parts_of(run)
            axes.plot([root(line["kl_to_reference"]) for line in drawn],
                      [line[key] for line in drawn], color=color, alpha=0.2, lw=0.8)  # fmt: skip
            label = f"{beta:g}" if run_number == 0 else None
            axes.plot([root(part.kl) for part in parts], [getattr(part, key) for part in parts],
                      "o-", ms=3.5, lw=1.2, color=color, label=label)  # fmt: skip


def root(kl: float) -> float:
    """An estimate of a KL divergence near 0 may be below it."""
    return math.sqrt(max(kl, 0.0))
