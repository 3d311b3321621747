"""Learning rate as a pure function of the number of applied optimizer steps."""

import math

from raysft.config.schema import Config
from raysft.config.training import Schedule

DEFAULT_WARMUP_RATIO = 0.05  # of all steps, where the config has neither ratio nor steps


def warmup_steps(schedule: Schedule, total_steps: int) -> int:
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    ratio = DEFAULT_WARMUP_RATIO if schedule.warmup_ratio is None else schedule.warmup_ratio
    return round(ratio * total_steps)


def learning_rate(
    applied_steps: int, *, lr: float, warmup_steps: int, total_steps: int, min_lr_ratio: float
) -> float:
    """The rate of the step that follows `applied_steps` earlier ones.

    Linear warmup: step t of w (t = 1..w) has lr * t / w, so the first step already moves. Then a
    cosine from lr to lr * min_lr_ratio (Loshchilov and Hutter 2017, equation 5, one cycle), whose
    t and T count from the end of warmup: the rate does not jump there. The last step has the floor.
    """
    if applied_steps < warmup_steps:
        return lr * (applied_steps + 1) / warmup_steps
    floor = lr * min_lr_ratio
    after_warmup = applied_steps + 1 - warmup_steps
    progress = min(1.0, after_warmup / max(1, total_steps - warmup_steps))
    return floor + (lr - floor) / 2 * (1 + math.cos(math.pi * progress))


def rate_at(applied_steps: int, lr: float, schedule: Schedule, total_steps: int) -> float:
    """The rate that a run's config gives the step after `applied_steps` earlier ones."""
    return learning_rate(
        applied_steps,
        lr=lr,
        warmup_steps=warmup_steps(schedule, total_steps),
        total_steps=total_steps,
        min_lr_ratio=schedule.min_lr_ratio,
    )


def equation(config: Config) -> str:
    """The schedule of a config in words: warmup, shape and floor."""
    schedule, lr, steps = config.schedule, config.optim.lr, config.run.max_steps
    ratio = DEFAULT_WARMUP_RATIO if schedule.warmup_ratio is None else schedule.warmup_ratio
    if schedule.warmup_steps is not None:
        warmup = f"{schedule.warmup_steps} steps"
    elif steps is not None:
        warmup = f"{round(ratio * steps)} steps = {ratio:g} x {steps}"
    else:
        warmup = f"{ratio:g} of all steps"
    floor = f"{lr * schedule.min_lr_ratio:g} = {schedule.min_lr_ratio:g} x {lr:g}"
    return f"0 to {lr:g} in {warmup}, then cosine to {floor}"
