"""[tune] and [bench]: what `raysft tune` searches, and what `raysft bench` measures."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysft.config.section import Count, Section, SeqLen, Steps, Unit
from raysft.config.space import SPACE, Domain


class Tune(Section):
    """What `raysft tune` searches, and how. Each trial is a training run; the one with the lowest
    held-out loss wins."""

    space: Annotated[Mapping[str, Domain], Field(min_length=1)] = SPACE
    """The keys to search, each with its domain, as `optim.lr = { uniform = [1e-5, 1e-4] }`. All
    keys but `batch.seq_len`, `model.path`, `model.tokenizer` and those of `run`, `data`, `scaling`,
    `eval`, `tune`, `bench`, `reward_model`, `dpo` and `pairs` can be searched."""
    num_trials: Annotated[Count, Unit("trials")] = 8
    """Number of trials. Ignored by `sampler = "grid"`, which runs every combination."""
    sampler: Literal["random", "grid", "tpe"] = "random"
    """How trials get their settings: drawn at random, every combination of the listed values, or
    Optuna's TPE, which learns from the trials before."""
    scheduler: Literal["fifo", "asha", "median", "pbt"] = "fifo"
    """`"fifo"` runs every trial to its end; `"asha"` and `"median"` stop trials that do worse than
    others did at the same step. `"pbt"` lets the worst trials go on from the best, with changed
    settings: it searches `optim.lr` and keys of `schedule` only, with `sampler = "random"`."""
    max_concurrent: Annotated[Count, Unit("trials")] | None = None
    """Most trials at the same time. When absent, as many as the cluster has room for, which is
    never exceeded."""

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
    """What `raysft bench seq-len` measures: training steps at several sequence lengths, once with
    the same number of sequences in a step (`batch.global_batch_size`) and once with the same number
    of tokens."""

    seq_lens: Annotated[tuple[SeqLen, ...], Field(min_length=1)] = (512, 640, 768, 896, 1024)
    """Sequence lengths to measure; each takes the place of `batch.seq_len`."""
    steps: Steps = 4
    """Timed steps in each case."""
    warmup_steps: Steps = 2
    """Steps before the timed ones in each case: the first allocates memory, the second settles."""
    synthetic: bool = False
    """Train on random tokens, all of them supervised, instead of the records of `data.path`."""
