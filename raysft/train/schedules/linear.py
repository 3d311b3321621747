"""From the rate to the floor in a straight line."""

from raysft.config.training import Schedule
from raysft.train.schedules.shape import Place, Shape


def factor(place: Place, schedule: Schedule) -> float:
    return 1 - (1 - schedule.min_lr_ratio) * place.progress


LINEAR = Shape(factor, lambda _, floor: f"linear to {floor}")
