"""The figure of a training run: losses, rate, gradient norm and throughput over its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from raysft.studies.figures import BLUE, GREY, ORANGE, loss_axis, new_figure, save, step_axis

Line = Mapping[str, Any]  # of metrics.jsonl
MARKED = 40  # points, up to which each is marked
SPIKY = 20  # times the median, from which on the gradient norm gets a logarithmic axis


def draw(path: Path, lines: Sequence[Line], title: str, *, max_grad_norm: float) -> None:
    save(training_figure(lines, title, max_grad_norm=max_grad_norm), path)


def training_figure(lines: Sequence[Line], title: str, *, max_grad_norm: float) -> Any:
    """A figure of matplotlib's. max_grad_norm: what gradients are clipped to; 0 for never."""
    figure = new_figure(11, 6.4, layout=None)
    # By hand, which takes half as long as matplotlib's layouts: a run waits for its figure.
    figure.subplots_adjust(0.07, 0.09, 0.985, 0.9, wspace=0.17, hspace=0.22)
    figure.suptitle(title)
    (loss, rate), (norm, tokens) = figure.subplots(2, 2, sharex=True)
    draw_losses(loss, lines)
    curve(rate, lines, "lr", BLUE)
    rate.set_title("Learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    draw_norms(norm, lines, max_grad_norm)
    curve(tokens, lines, "tokens_per_second", BLUE, "all")
    curve(tokens, lines, "supervised_tokens_per_second", ORANGE, "supervised")
    tokens.set_title("Tokens a second, all workers")
    tokens.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for axes in (rate, norm, tokens):
        if axes.get_yscale() == "linear":
            from_zero(axes)
    for axes in (loss, tokens):
        if axes.lines:
            axes.legend(frameon=False)
    for axes in (loss, rate, norm, tokens):
        axes.grid(alpha=0.3)
    for axes in (norm, tokens):
        axes.set_xlabel("optimizer step")
        step_axis(axes)
    return figure


def points(lines: Sequence[Line], key: str) -> list[tuple[int, float]]:
    """(step, value) wherever there is one."""
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def curve(axes: Any, lines: Sequence[Line], key: str, color: str, label: str = "") -> None:
    if found := points(lines, key):
        style = "o-" if len(found) <= MARKED else "-"
        axes.plot(*zip(*found, strict=True), style, color=color, ms=3.5, lw=1.4, label=label)


def from_zero(axes: Any) -> None:
    """With room above for the mark of the highest point."""
    if highest := max((max(line.get_ydata()) for line in axes.lines), default=0):
        axes.set_ylim(0, 1.06 * highest)


def draw_losses(axes: Any, lines: Sequence[Line]) -> None:
    curve(axes, lines, "loss", BLUE, "training")
    curve(axes, lines, "eval_loss", ORANGE, "held out")
    both = [value for key in ("loss", "eval_loss") for _, value in points(lines, key)]
    loss_axis(axes.yaxis, axes.set_yscale, both)
    words = " (logarithmic)" if axes.get_yscale() == "log" else ""
    of_pairs = any({"accuracy", "eval_accuracy"} & line.keys() for line in lines)
    unit = "a pair" if of_pairs else "nats a token"
    axes.set_title(f"Loss, {unit}{words}")


def draw_norms(axes: Any, lines: Sequence[Line], limit: float) -> None:
    curve(axes, lines, "grad_norm", BLUE)
    norms = [value for _, value in points(lines, "grad_norm") if value > 0]
    words = ""
    if norms and max(norms) > SPIKY * median(norms):
        axes.set_yscale("log")
        words = " (logarithmic)"
    if limit:
        axes.axhline(limit, color=GREY, ls="--", lw=1, label=f"clipped to {limit:g}")
        axes.legend(frameon=False)
    axes.set_title(f"Gradient norm before clipping{words}")
