"""How many workers a run has, and what each of them gets."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from raysft.config.section import Count, CountOrZero, Section


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
    # One number, or [min, max]: as many as the cluster has room for.
    workers: Annotated[int | tuple[int, int], BeforeValidator(one_or_range)] = 1
    cpus_per_worker: Count = 1  # also the threads of a worker
    gpus_per_worker: CountOrZero = 0  # 0: train on the CPU
    max_failures: CountOrZero = 3  # restarts from the newest checkpoint, after lost workers

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
