"""The shape of a schedule, as a value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from raysft.config.training import Schedule


class Place(NamedTuple):
    """Where a step stands in its run; the counts are of applied steps, this one among them."""

    after: int  # steps since the warmup, from 1
    left: int  # steps of the run after the warmup, at least 1
    warmup: int

    @property
    def progress(self) -> float:
        """From the warmup, 0, to the end of the run, 1, where it stays."""
        return min(1.0, self.after / self.left)


@dataclass(frozen=True)
class Shape:
    """factor: of optim.lr, for the step at a place. words: the same, for a rate and its floor."""

    factor: Callable[[Place, Schedule], float]
    words: Callable[[Schedule, str], str]
