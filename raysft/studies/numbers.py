"""Order statistics without numpy, so that a report is drawn at once."""

from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Linear between the nearest two, as numpy does it; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def median(values: Sequence[float]) -> float | None:
    return percentile(values, 50)
