"""[tune] and [bench]: what `raysft tune` searches, and what `raysft bench` measures."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysft.config.section import Count, Section, SeqLen
from raysft.config.space import SPACE, Domain


class Tune(Section):
    """What `raysft tune` searches. A key of `space` is a key of this config and its domain."""

    space: Annotated[Mapping[str, Domain], Field(min_length=1)] = SPACE
    num_trials: Count = 8  # a grid has as many as it has points
    sampler: Literal["random", "grid", "tpe"] = "random"  # tpe: Optuna's, which learns from trials
    # asha and median stop a trial that is worse than others were at its step; pbt moves the
    # settings of the worst towards those of the best while they train.
    scheduler: Literal["fifo", "asha", "median", "pbt"] = "fifo"
    max_concurrent: Count | None = None  # default: as many as the cluster has room for

    @model_validator(mode="after")
    def check_sampler(self) -> "Tune":
        for key, domain in self.space.items():
            if self.sampler == "grid" and domain.kind not in ("grid", "choice"):
                raise ValueError(
                    f'sampler "grid" takes every combination, but {key} is a range: list its '
                    'values as grid = [...], or set sampler = "random"'
                )
            if self.sampler != "grid" and domain.kind == "grid":
                raise ValueError(
                    f'{key} is a grid, and sampler "{self.sampler}" draws values: set sampler = '
                    '"grid", or list them as choice = [...]'
                )
        return self

    @model_validator(mode="after")
    def check_scheduler(self) -> "Tune":
        if self.scheduler != "pbt":
            return self
        if self.sampler != "random":
            raise ValueError('scheduler "pbt" draws its first settings: set sampler = "random"')
        for key in self.space:
            if key != "optim.lr" and not key.startswith("schedule."):
                raise ValueError(
                    f'scheduler "pbt" changes settings while a trial trains, and {key} cannot '
                    "change then: search optim.lr and schedule.* with it"
                )
        return self


class Bench(Section):
    """What `raysft bench` measures. A step has batch.global_batch_size sequences."""

    seq_lens: Annotated[tuple[SeqLen, ...], Field(min_length=1)] = (512, 640, 768, 896, 1024)
    steps: Count = 4  # timed, of each case
    warmup_steps: Count = 2  # before them, and not timed: the first allocates, the second settles
    synthetic: bool = False  # random tokens, all supervised, instead of the records
