"""Learning rate as a pure function of the number of applied optimizer steps."""

from raysft.config.schema import Config
from raysft.config.training import Schedule
from raysft.train.schedules.constant import CONSTANT
from raysft.train.schedules.cosine import COSINE
from raysft.train.schedules.inverse_sqrt import INVERSE_SQRT
from raysft.train.schedules.linear import LINEAR
from raysft.train.schedules.shape import Place, Shape
from raysft.train.schedules.wsd import WSD

SHAPES: dict[str, Shape] = {  # by schedule.name
    "cosine": COSINE,
    "linear": LINEAR,
    "constant": CONSTANT,
    "inverse_sqrt": INVERSE_SQRT,
    "wsd": WSD,
}
DEFAULT_WARMUP_RATIO = 0.05  # of all steps, where the config has neither ratio nor steps


def warmup_steps(schedule: Schedule, total_steps: int) -> int:
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    ratio = DEFAULT_WARMUP_RATIO if schedule.warmup_ratio is None else schedule.warmup_ratio
    return round(ratio * total_steps)


def learning_rate(
    applied_steps: int, *, lr: float, warmup_steps: int, total_steps: int, schedule: Schedule
) -> float:
    """The rate of the step that follows `applied_steps` earlier ones.

    Linear warmup: step t of w (t = 1..w) has lr * t / w, so the first step already moves. Then what
    `schedule.name` says.
    """
    if applied_steps < warmup_steps:
        return lr * (applied_steps + 1) / warmup_steps
    after = applied_steps + 1 - warmup_steps
    place = Place(after, max(1, total_steps - warmup_steps), warmup_steps)
    return lr * SHAPES[schedule.name].factor(place, schedule)


def rate_at(applied_steps: int, lr: float, schedule: Schedule, total_steps: int) -> float:
    """The rate that a run's config gives the step after `applied_steps` earlier ones."""
    return learning_rate(
        applied_steps,
        lr=lr,
        warmup_steps=warmup_steps(schedule, total_steps),
        total_steps=total_steps,
        schedule=schedule,
    )


def equation(config: Config) -> str:
    """The schedule of a config in words: warmup, and what follows it."""
    schedule, lr, steps = config.schedule, config.optim.lr, config.run.max_steps
    ratio = DEFAULT_WARMUP_RATIO if schedule.warmup_ratio is None else schedule.warmup_ratio
    if schedule.warmup_steps is not None:
        warmup = f"{schedule.warmup_steps} steps"
    elif steps is not None:
        warmup = f"{round(ratio * steps)} steps = {ratio:g} x {steps}"
    else:
        warmup = f"{ratio:g} of all steps"
    floor = f"{lr * schedule.min_lr_ratio:g} = {schedule.min_lr_ratio:g} x {lr:g}"
    return f"0 to {lr:g} in {warmup}, then {SHAPES[schedule.name].words(schedule, floor)}"
