"""Two training curves side by side."""

import math

from raysft.doctor.plain import Curve

TOLERANCE = 1e-4  # of a relative difference; float noise stays far below


def agreement(found: Curve, wanted: Curve) -> str:
    """Such as "losses within 3.1e-7, gradient norms within 2e-6"."""
    losses, norms = (max(gaps) for gaps in gaps_of(found, wanted))
    return f"losses within {short(losses)}, gradient norms within {short(norms)}"


def beyond(found: Curve, wanted: Curve) -> list[int]:
    """The steps of these, counted from 1, that differ by more than the tolerance."""
    pairs = enumerate(zip(*gaps_of(found, wanted), strict=True), start=1)
    return [step for step, gaps in pairs if max(gaps) > TOLERANCE]


def gaps_of(found: Curve, wanted: Curve) -> tuple[list[float], list[float]]:
    """Relative differences of each step's loss and norm; infinite where a step is missing."""
    if len(found.losses) != len(wanted.losses):
        return [math.inf], [math.inf]
    losses, norms = (
        [relative(one, other) for one, other in zip(mine, theirs, strict=True)]
        for mine, theirs in zip(found, wanted, strict=True)
    )
    return losses, norms


def relative(found: float | None, wanted: float) -> float:
    """Infinite where a number is none, so that nothing compares well with it."""
    gap = math.inf if found is None else abs(found - wanted) / abs(wanted)
    return math.inf if math.isnan(gap) else gap


def short(number: float) -> str:
    """3.1e-07 as 3.1e-7."""
    return f"{number:.1e}".replace("e-0", "e-") if 0 < number < math.inf else f"{number:g}"
