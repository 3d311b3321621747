"""From the rate to the floor by half a cosine (Loshchilov and Hutter 2017, equation 5, one cycle).

Its t and T count from the end of the warmup: the rate does not jump there.
"""

import math

from raysft.config.training import Schedule
from raysft.train.schedules.shape import Place, Shape


def factor(place: Place, schedule: Schedule) -> float:
    floor = schedule.min_lr_ratio
    return floor + (1 - floor) / 2 * (1 + math.cos(math.pi * place.progress))


COSINE = Shape(factor, lambda _, floor: f"cosine to {floor}")
