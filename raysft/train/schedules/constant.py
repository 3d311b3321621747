"""The rate stays."""

from raysft.train.schedules.shape import Shape

CONSTANT = Shape(lambda place, schedule: 1.0, lambda schedule, floor: "constant")  # noqa: ARG005
