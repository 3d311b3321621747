"""Warmup, stable, decay: the rate stays until the last steps, and falls to the floor in them.

Hu et al. 2024, section 4.2; it falls as 1 - sqrt(t), which Hägele et al. 2024, section 4, found
best. A run can be made longer from a checkpoint before its decay.
"""

from math import sqrt

from raysft.config.training import Schedule
from raysft.train.schedules.shape import Place, Shape

DEFAULT_DECAY_RATIO = 0.2  # of all steps


def decay_ratio(schedule: Schedule) -> float:
    return DEFAULT_DECAY_RATIO if schedule.decay_ratio is None else schedule.decay_ratio


def factor(place: Place, schedule: Schedule) -> float:
    steps = min(place.left, round(decay_ratio(schedule) * (place.warmup + place.left)))
    gone = min(1.0, max(0.0, (place.after - (place.left - steps)) / max(1, steps)))
    return 1 - (1 - schedule.min_lr_ratio) * sqrt(gone)


WSD = Shape(
    factor,
    lambda schedule, floor: (
        f"constant, and in the last {decay_ratio(schedule):g} of all steps to {floor}"
    ),
)
