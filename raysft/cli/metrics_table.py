"""The table of metrics, which grows by a row at a time: rows never wrap, numbers are never cut."""

from collections.abc import Iterator, Sequence

from raysft.runs.events import Metrics
from raysft.runs.metrics import Metric, columns, columns_for

STEP_WIDTH = 6


class MetricsTable:
    """Keeps what the last heading was printed for: another width gets another one."""

    def __init__(self) -> None:
        self.total_steps = 0
        self.shown: Sequence[Metric] = ()
        self.left_out: set[str] = set()  # of which was told

    def lines(self, event: Metrics, width: int | None) -> Iterator[str]:
        """Of rich's markup: a row, and before it what it needs. width: None for all columns."""
        step_width = max(STEP_WIDTH, len(f"{self.total_steps:,}"))
        known = columns(event.values)
        shown = columns_for(known, width, step_width)
        if shown != self.shown:
            self.shown = shown
            out = [metric.heading for metric in known if metric not in shown]
            if set(out) - self.left_out:
                self.left_out |= set(out)
                yield f"[dim]in metrics.jsonl, not shown: {', '.join(out)}[/]"
            heading = "".join(f"{metric.heading:>{metric.width}}" for metric in shown)
            yield f"[bold]{'step':>{step_width}}{heading}[/]"
        yield f"{event.step:>{step_width},}" + "".join(cell(event, metric) for metric in shown)


def cell(event: Metrics, metric: Metric) -> str:
    value = event.values.get(metric.key)
    return f"{'' if value is None else metric.words(value):>{metric.width}}"
