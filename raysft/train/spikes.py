"""Updates that are skipped because their gradient is far larger than those before it."""

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor

WINDOW = 64  # steps whose norms have the median that a norm is held against
FEWEST = 16  # norms of which a median is taken: before that nothing is skipped


def norm_limit(norms: list[float], times: float) -> float:
    """The gradient norm beyond which an update is skipped: infinite where none is.

    norms: of the steps before. times: optim.skip_spikes.
    """
    if not times or len(norms) < FEWEST:
        return math.inf
    return times * statistics.median(norms)


def is_spike(norm: Tensor | float, limit: float) -> bool:
    """Never so for a norm that is no number: that is no outlier but a failure, told elsewhere.

    A GPU waits for the norm, but only where there is a limit.
    """
    return limit < math.inf and limit < float(norm) < math.inf


def remember(norms: list[float], norm: float) -> None:
    """Add a step's norm to the last `WINDOW` of them.

    That of a skipped step too. A few spikes do not move the median, but where norms stay larger it
    follows them; of applied steps alone, it would stay, and every later step would be skipped.
    """
    if math.isfinite(norm):
        norms.append(norm)
        del norms[:-WINDOW]


@contextmanager
def skip_beyond(limit: float, engine: Any, own_norm: Tensor | float) -> Iterator[None]:
    """Within it, engine.step() changes nothing if the norm of its gradient is a spike.

    own_norm: of that gradient, where DeepSpeed computes none.
    DeepSpeed calls the optimizer below it after it has the norm, once for each group of parameters.
    A call that does nothing leaves weights, moments and counters as they are, while DeepSpeed goes
    on and drops the gradients. Its own way to skip would report an overflow, and to fp16's loss
    scaler too. All ranks have the same norms, so they all decide alike.
    """
    if limit == math.inf:
        yield
        return
    optimizer = engine.basic_optimizer
    update = optimizer.step

    @cache  # the first call waits for the norm, the others need not
    def skips() -> bool:
        return is_spike(getattr(engine.optimizer, "_global_grad_norm", own_norm), limit)

    optimizer.step = lambda: None if skips() else update()
    try:
        yield
    finally:
        del optimizer.step  # the method of its class is there again


def words(step: int, norm: float, limit: float, times: float) -> str:
    """The warning about a skipped update."""
    return (
        f"step {step}: gradient norm {norm:.4g} is beyond {times:g} x the median "
        f"{limit / times:.4g}: the update was skipped"
    )
