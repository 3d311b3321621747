"""The figure of a run of rewards: what it has gained, and how far it went for that."""

from collections.abc import Sequence
from pathlib import Path

from raysft.studies.figures import BLUE, ORANGE, new_figure, save, step_axis
from raysft.studies.training.figure import MARKED, Line, curve

DRAWN = (("reward", BLUE, "reward, trained"), ("checked", ORANGE, "checker's, watched"))


def draw_rewards(path: Path, lines: Sequence[Line], title: str) -> None:
    """Over the steps; and over the KL divergence, where a reward that goes on rising while the
    checker's falls is being gamed (Gao et al. 2022, figure 1)."""
    figure = new_figure(11, 3.6)
    figure.suptitle(title)
    over_steps, over_kl = figure.subplots(1, 2, sharey=True)
    for key, color, label in DRAWN:
        curve(over_steps, lines, key, color, label)
        found = [(one["kl_to_reference"], one[key]) for one in lines if one.get(key) is not None]
        style = "o-" if len(found) <= MARKED else "-"
        if found:
            over_kl.plot(*zip(*found, strict=True), style, color=color, ms=3.5, lw=1.0)
    over_steps.set_title("Worth of an answer")
    over_steps.set_xlabel("optimizer step")
    step_axis(over_steps)
    over_steps.legend(frameon=False)
    over_kl.set_title("The same, over the distance from the reference")
    over_kl.set_xlabel("KL(pi, pi_ref), nats an answer")
    for axes in (over_steps, over_kl):
        axes.grid(alpha=0.3)
    save(figure, path)
