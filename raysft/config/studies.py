"""[tune] and [bench]: what `raysft tune` searches, and what `raysft bench` measures."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysft.config.section import (
    Count,
    FloatOrZero,
    Fraction,
    PositiveFloat,
    Precision,
    Records,
    Section,
    SeqLen,
    Steps,
    Unit,
)
from raysft.config.space import SPACE, Domain


class Tune(Section):
    """What `raysft tune` searches, and how. Each trial is a training run; the one with the lowest
    held-out loss wins, or of `ppo` the one whose answers are worth most."""

    verb: Literal["train", "dpo", "reward", "ppo"] = "train"
    """What each trial is a run of. Those of `"ppo"` are ranked by `ppo.checker`, or where there is
    none by `ppo.reward`: by the mean over the last five lines of the log."""

    space: Annotated[Mapping[str, Domain], Field(min_length=1)] = SPACE
    """The keys to search, each with its domain, as `optim.lr = { uniform = [1e-5, 1e-4] }`. All
    keys but `batch.seq_len`, `model.path`, `model.tokenizer`, `ppo.reward`, `ppo.checker` and those
    of `run`, `data`, `scaling`, `eval`, `dpo`, `reward_model`, `tune`, `bench`, `pairs` and `align`
    can be searched, those of `ppo` where trials are runs of it."""
    num_trials: Annotated[Count, Unit("trials")] = 8
    """Number of trials. Ignored by `sampler = "grid"`, which runs every combination."""
    sampler: Literal["random", "grid", "tpe"] = "random"
    """How trials get their settings: drawn at random, every combination of the listed values, or
    Optuna's TPE, which learns from the trials before."""
    scheduler: Literal["fifo", "asha", "median", "pbt"] = "fifo"
    """`"fifo"` runs every trial to its end; `"asha"` and `"median"` stop trials that do worse than
    others did at the same step. `"pbt"` lets the worst trials go on from the best, with changed
    settings: it searches `optim.lr` and keys of `schedule` only, with `sampler = "random"` and
    `verb = "train"`."""
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
        if self.verb != "train":
            raise ValueError(
                f'scheduler "pbt" lets trials go on from each other, which runs of raysft '
                f"{self.verb} cannot: take another scheduler"
            )
        for key in self.space:
            if key != "optim.lr" and not key.startswith("schedule."):
                raise ValueError(
                    f'scheduler "pbt" changes settings while a trial trains, and {key} cannot '
                    "change then: search optim.lr and schedule.* with it"
                )
        return self


class Bench(Section):
    """What the studies of `raysft bench` measure. `seq-len`: training steps at several sequence
    lengths, once with the same number of sequences in a step (`batch.global_batch_size`) and once
    with the same number of tokens. `grad-variance`: the noise in the gradients of sequences of
    several lengths, along training runs that differ in their seed. `masking`: what
    `data.prompt_loss_weight` does to losses, gradients and answers, in runs of equal steps.
    `data-size`: what more training records buy, on subsets of several sizes. `stability`: up to
    which learning rate training holds, with several warmups, clippings and precisions.
    `over-optimization`: how far a learned reward can be followed, in runs of `raysft ppo`."""

    seq_lens: Annotated[tuple[SeqLen, ...], Field(min_length=1)] = (512, 640, 768, 896, 1024)
    """Sequence lengths to measure, in `seq-len` and `grad-variance`."""
    steps: Steps = 4
    """Timed steps in each case of `seq-len`."""
    warmup_steps: Steps = 2
    """Steps before the timed ones in each case of `seq-len`: the first allocates memory, the second
    settles."""
    synthetic: bool = False
    """In `seq-len`, train on random tokens, all of them supervised, instead of the records of
    `data.path`."""
    prompt_loss_weights: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (
        0.0, 0.01, 0.1, 0.5, 1.0
    )  # fmt: skip
    """In `masking`, the values of `data.prompt_loss_weight` to compare."""
    data_sizes: Annotated[tuple[Records, ...], Field(min_length=1)] | None = None
    """In `data-size`, the numbers of training records to compare. When absent, 100 and doubling, up
    to all."""
    lrs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
        1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0
    )  # fmt: skip
    """In `stability`, the learning rates to try one after the other, the lowest first, until one
    diverges."""
    warmup_ratios: Annotated[tuple[Fraction, ...], Field(min_length=1), Unit("of all steps")] = (
        0.0, 0.03, 0.1
    )  # fmt: skip
    """In `stability`, the lengths of warmup to compare: values of `schedule.warmup_ratio`."""
    max_grad_norms: Annotated[tuple[FloatOrZero, ...], Field(min_length=1)] = (0.0, 1.0, 0.3)
    """In `stability`, the values of `optim.max_grad_norm` to compare. 0 does not clip."""
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32", "bf16")
    """In `stability`, the values of `engine.precision` to compare."""
    betas: Annotated[tuple[FloatOrZero, ...], Field(min_length=1)] = (0.0, 0.01, 0.03, 0.1, 0.3)
    """In `over-optimization`, the values of `ppo.beta` to compare."""
    seeds: Annotated[Count, Unit("runs")] = 3
    """Runs of each point of a study other than `seq-len`, which differ in their seed only: from
    `run.seed` on. The intervals are over them."""
    examples: Annotated[Count, Unit("sequences")] = 64
    """Sequences of each length whose gradients `grad-variance` measures."""
    shard_size: Annotated[Count, Unit("sequences")] | None = None
    """Sequences of one gradient in `grad-variance`: a multiple of `scaling.workers`, which share
    them. When absent, one a worker, which tells most."""
