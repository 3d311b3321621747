"""The figures of a search: loss curves, one scatter for each setting, parallel coordinates."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.studies.figures import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    loss_axis,
    new_figure,
    save,
    step_axis,
)
from raysft.studies.tune.goal import Goal
from raysft.studies.tune.tables import headings, value_text
from raysft.studies.tune.trials import Trial, best_of

if TYPE_CHECKING:
    from raysft.config.space import Domain

BEST, DONE, STOPPED, DIVERGED = ORANGE, BLUE, GREY, RED
COLORS = {"done": DONE, "diverged": DIVERGED}  # what else there is: as STOPPED
LABELS = {"done": "went to its end", "diverged": "diverged", "stopped": "stopped early"}


def draw(folder: Path, space: Mapping[str, "Domain"], trials: Sequence[Trial], goal: Goal) -> None:
    wide = new_figure(9, 4.8)
    draw_curves(wide.subplots(), trials, goal)
    save(wide, folder / "curves.png")
    many = new_figure(4.2 * len(space), 3.8)
    axes = many.subplots(1, len(space), sharey=True, squeeze=False)[0]
    for one, key, heading in zip(axes, space, headings(space), strict=True):
        draw_setting(one, key, space[key], trials, goal)
        one.set_xlabel(heading.replace("_", " "))
    axes[0].set_ylabel(f"last {goal.words}")
    legend(many, trials, goal)
    save(many, folder / "settings.png")
    lines = new_figure(2.2 + 2.2 * len(space), 4.8)
    draw_parallel(lines, space, trials, goal)
    save(lines, folder / "parallel.png")


def edge_of(trials: Sequence[Trial], goal: Goal) -> float:
    """Where what has diverged is drawn, and how far the axis reaches: a loss as high as that of a
    model that is as good as untrained, and some room; or the lowest of what is better higher."""
    if goal.higher:
        return min(scores_of(trials), default=0.0)
    return 1.25 * max((trial.curve[0][1] for trial in trials if trial.curve), default=1.0)


def within(score: float, edge: float, goal: Goal) -> float:
    return score if goal.higher else min(score, edge)


def scores_of(trials: Sequence[Trial]) -> list[float]:
    return [score for trial in trials for _, score in trial.curve]


def score_axis(axes: Any, trials: Sequence[Trial], edge: float, goal: Goal) -> None:
    if not goal.higher:
        loss_axis(axes.yaxis, axes.set_yscale, scores_of(trials))
        room_above(axes, edge)


def draw_curves(axes: Any, trials: Sequence[Trial], goal: Goal) -> None:
    best, edge = best_of(trials, goal), edge_of(trials, goal)
    for trial in trials:
        if not trial.curve:
            continue
        steps = [step for step, _ in trial.curve]
        losses = [within(score, edge, goal) for _, score in trial.curve]
        if trial.diverged_step is not None:  # what ended it is not in its curve
            steps, losses = [*steps, trial.diverged_step], [*losses, edge]
        color = COLORS.get(trial.status, STOPPED)
        axes.plot(steps, losses, color=color, lw=1, alpha=0.6)
        mark = "x" if trial.status == "diverged" else "."
        axes.plot(steps[-1:], losses[-1:], mark, color=color, ms=6, zorder=3)
    if best is not None:
        label = f"best: trial {best.number}, {best.score:.4f}"
        axes.plot(*zip(*best.curve, strict=True), "-o", color=BEST, lw=2, ms=4, label=label)
    for status, label in LABELS.items():
        if any(trial.status == status for trial in trials):
            axes.plot([], [], color=COLORS.get(status, STOPPED), label=label)
    axes.set(
        title=f"{goal.words[0].upper()}{goal.words[1:]} of {len(trials)} trials",
        xlabel="optimizer step", ylabel=f"{goal.words}, {goal.unit}",
    )  # fmt: skip
    score_axis(axes, trials, edge, goal)
    step_axis(axes)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def room_above(axes: Any, top: float) -> None:
    """So that what stands at the top lies within the axes as a whole."""
    low = axes.get_ylim()[0]
    log = axes.get_yscale() == "log"
    axes.set_ylim(top=top * (top / low) ** 0.06 if log else top + 0.06 * (top - low))


def draw_setting(
    axes: Any, key: str, domain: "Domain", trials: Sequence[Trial], goal: Goal
) -> None:
    best, edge = best_of(trials, goal), edge_of(trials, goal)
    for trial in trials:
        score = edge if trial.status == "diverged" else trial.score
        if score is None:
            continue
        place = position(domain, trial.settings[key])
        if trial is best:
            axes.plot(place, score, "*", color=BEST, ms=14, zorder=3)
            continue
        mark = "x" if trial.status == "diverged" else "o"
        color = COLORS.get(trial.status, STOPPED)
        axes.plot(place, within(score, edge, goal), mark, color=color, ms=6, alpha=0.8)
    ticks = tick_values(domain)
    axes.set_xticks([position(domain, value) for value in ticks])
    axes.margins(x=0.06)
    axes.set_xticklabels([value_text(value) for value in ticks])
    score_axis(axes, trials, edge, goal)
    axes.grid(alpha=0.3)


def legend(figure: Any, trials: Sequence[Trial], goal: Goal) -> None:
    from matplotlib.lines import Line2D

    entries = [("*", BEST, "best")] if best_of(trials, goal) else []
    for status, label in LABELS.items():
        if any(trial.status == status for trial in trials):
            mark = "x" if status == "diverged" else "o"
            edge = "bottom" if goal.higher else "top"
            word = f"diverged, at the {edge}" if status == "diverged" else label
            entries.append((mark, COLORS.get(status, STOPPED), word))
    figure.legend(
        handles=[Line2D([], [], ls="", marker=m, color=c, label=label) for m, c, label in entries],
        loc="outside upper center", ncols=len(entries), frameon=False,
    )  # fmt: skip


def draw_parallel(
    figure: Any, space: Mapping[str, "Domain"], trials: Sequence[Trial], goal: Goal
) -> None:
    """Every trial a line through its settings to its score; good ones dark, the best in front."""
    import matplotlib

    axes = figure.subplots()
    best = best_of(trials, goal)
    scores = {t.number: t.score for t in trials if t.score is not None and t.status != "diverged"}
    low, high = (min(scores.values()), max(scores.values())) if scores else (1.0, 1.0)
    wide = high > 5 * low > 0 and not goal.higher

    def scaled(score: float) -> float:
        a, b, x = (math.log(v) if wide else v for v in (low, high, score))
        return (x - a) / (b - a) if b > a else 0.0

    colors = matplotlib.colormaps["viridis"]
    for trial in trials:
        if trial.number not in scores and trial.status != "diverged":
            continue
        heights = [unit(space[key], trial.settings[key]) for key in space]
        if trial.status == "diverged":
            axes.plot([*range(len(space))], heights, ":", color=DIVERGED, lw=1, alpha=0.7)
            continue
        height = scaled(scores[trial.number])
        bright = 1 - height if goal.higher else height
        style = {"color": BEST, "lw": 3, "zorder": 3} if trial is best else {
            "color": colors(0.9 * bright), "lw": 1.2, "alpha": 0.8,
        }  # fmt: skip
        axes.plot([*range(len(space) + 1)], [*heights, height], **style)
    for place, key in enumerate(space):
        axis_line(
            axes, place, [(unit(space[key], v), value_text(v)) for v in tick_values(space[key])]
        )
    middle = math.sqrt(low * high) if wide else (low + high) / 2
    axis_line(axes, len(space), [(scaled(v), f"{v:.3g}") for v in (low, middle, high)])
    names = [heading.replace("_", " ") for heading in headings(space)]
    axes.set_xticks([*range(len(space) + 1)], [*names, goal.words])
    axes.set(xlim=(-0.15, len(space) + 0.35), ylim=(-0.04, 1.04), yticks=[])
    axes.spines[:].set_visible(False)
    words = "orange: the best; dark to bright: good to bad"
    words += "; dotted red: diverged" if any(t.status == "diverged" for t in trials) else ""
    axes.set_title(words, fontsize=10)


def axis_line(axes: Any, place: int, ticks: Sequence[tuple[float, str]]) -> None:
    axes.plot([place, place], [0, 1], color="black", lw=1, zorder=4)
    for height, text in ticks:
        axes.plot([place - 0.02, place + 0.02], [height, height], color="black", lw=1, zorder=4)
        axes.text(
            place + 0.04, height, text, va="center", fontsize=9, zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )  # fmt: skip


def position(domain: "Domain", value: Any) -> float:
    """Where a value lies on its axis: its logarithm, itself, or its number in the list."""
    match domain.kind:
        case "loguniform":
            return math.log10(value)
        case "uniform" | "int":
            return float(value)
        case _:
            return float(domain.values.index(value))


def unit(domain: "Domain", value: Any) -> float:
    """The same from 0 to 1."""
    ends = position(domain, domain.values[0]), position(domain, domain.values[-1])
    low, high = min(ends), max(ends)
    return (position(domain, value) - low) / (high - low) if high > low else 0.5


def tick_values(domain: "Domain") -> list[Any]:
    low, high = domain.values[0], domain.values[-1]
    match domain.kind:
        case "loguniform":
            powers = range(
                math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1
            )
            return [10.0**power for power in powers] if len(powers) > 1 else [low, high]
        case "uniform":
            return [low + (high - low) * part / 4 for part in range(5)]
        case "int":
            return sorted({round(low + (high - low) * part / 4) for part in range(5)})
        case _:
            return list(domain.values)
