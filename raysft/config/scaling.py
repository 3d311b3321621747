"""How many workers a run has, and what each of them gets."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from raysft.config.section import Count, CountOrZero, Section, Unit


def one_or_range(value: Any) -> int | tuple[int, int]:
    """Raises ValueError that names both forms, where pydantic would say what is wrong with each."""
    numbers = value if isinstance(value, list | tuple) else [value]
    if all(type(number) is int and number >= 1 for number in numbers):
        if numbers is not value:
            return int(value)
        if len(numbers) == 2 and numbers[0] <= numbers[1]:
            return (numbers[0], numbers[1]) if numbers[0] < numbers[1] else int(numbers[0])
    raise ValueError(f"{value!r} is neither a number of workers, such as 2, nor [min, max]")


class Scaling(Section):
    """How many workers train, what each of them gets, and how often they may fail."""

    # one_or_range() has checked the limits of Count before: they are for the page of keys.
    workers: Annotated[
        Count | tuple[Count, Count], BeforeValidator(one_or_range), Unit("workers")
    ] = 1
    """Number of workers, or `[min, max]` for as many as the cluster has room for, more or fewer as
    nodes come and go. A range needs checkpoints, and `raysft tune` and `raysft bench` refuse it."""
    cpus_per_worker: Annotated[Count, Unit("CPUs")] = 1
    """CPUs reserved for each worker, and the number of its threads."""
    gpus_per_worker: Annotated[CountOrZero, Unit("GPUs")] = 0
    """GPUs reserved for each worker, which trains on one: 1 on GPUs, or 0 to train on the CPU."""
    max_failures: Annotated[CountOrZero, Unit("restarts")] = 3
    """How often failed workers start again from the newest checkpoint before the run fails. Errors
    that would only recur end the run at once."""

    @property
    def fewest(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def elastic(self) -> bool:
        return not isinstance(self.workers, int)

    @property
    def count(self) -> str:
        return f"{self.fewest} to {self.most}" if self.elastic else str(self.most)

    @property
    def words(self) -> str:
        """Such as "1 worker", "2 workers", "1 to 2 workers"."""
        return f"{self.count} worker{'' if self.most == 1 else 's'}"
