"""As one over the square root of the step (Vaswani et al. 2017, section 5.3), down to the floor.

It does not know how long the run is: a longer one goes on where a shorter one ended.
"""

from math import sqrt

from raysft.config.training import Schedule
from raysft.train.schedules.shape import Place, Shape


def factor(place: Place, schedule: Schedule) -> float:
    """Without a warmup as with one of a step."""
    warmup = max(1, place.warmup)
    return max(schedule.min_lr_ratio, sqrt(warmup / (warmup + place.after)))


INVERSE_SQRT = Shape(factor, lambda _, floor: f"1 / sqrt(step), not below {floor}")
