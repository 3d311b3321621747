"""[reward_model], [dpo], [ppo], [pairs]: what is learnt from preferences and rewards, and how pairs
are made."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysft.config.section import (
    Count,
    FloatOrZero,
    Fraction,
    Place,
    PositiveFloat,
    Section,
    Tokens,
    Unit,
)


class RewardModel(Section):
    """The loss of `raysft reward`."""

    center: FloatOrZero = 0.01
    """Weight of the squared sum of a pair's two rewards, which keeps them around 0. The pairs alone
    tell differences only."""
    margins: bool = False
    """Ask of a pair's rewards to be apart by the margin that its scores say, where it has one."""


class Dpo(Section):
    """The loss of `raysft dpo`. The reference is the model that the run starts from."""

    beta: PositiveFloat = 0.1
    """How strongly the model is held to the reference: the weight of the KL divergence in the
    objective whose optimum DPO looks for."""
    loss: Literal["dpo", "ipo"] = "dpo"
    """`"dpo"` is the logistic loss of Rafailov et al. 2023, `"ipo"` the squared one of Azar et al.
    2023, whose margin is 1 / (2 `beta`) nats and no more. Both are of sums over an answer."""
    nll_weight: FloatOrZero = 1.0
    """Weight of the chosen answer's mean negative log-likelihood a token, which keeps it likely. At
    0 pairs are told apart ever better while the answers themselves may become worse."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """How often a pair is taken to be labelled the wrong way round. Only with `loss` `"dpo"`."""

    @model_validator(mode="after")
    def check_smoothing(self) -> "Dpo":
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError('label_smoothing is of loss = "dpo": "ipo" has none')
        return self


class Ppo(Section):
    """What `raysft ppo` looks for: the largest E[r] - beta KL(pi, pi_ref), in nats an answer. The
    reference is the model that the run starts from. `batch.global_batch_size` counts answers."""

    reward: Place | tuple[Place, ...] = "exact"
    """What an answer is worth, as in `pairs.reward`; of several, their weighted sum."""
    reward_weights: tuple[float, ...] = ()
    """Of each reward. When empty, 1 each."""
    checker: Place | None = None
    """A reward that is watched and never trained, to tell whether answers that are worth more are
    also better."""
    beta: FloatOrZero = 0.05
    """Weight of the KL divergence to the reference."""
    advantage: Literal["group", "critic"] = "group"
    """What an answer is compared with: `"group"` takes the mean of the other answers to its prompt,
    `"critic"` what a value head on the same trunk expects at every token."""
    group: Annotated[Count, Unit("answers")] = 8
    """Answers drawn for each prompt."""
    epochs: Annotated[Count, Unit("passes")] = 1
    """How often the answers of an iteration are trained on."""
    minibatches: Annotated[Count, Unit("optimizer steps")] = 1
    """Steps in one pass over the answers of an iteration, which are `minibatches` times
    `batch.global_batch_size`."""
    clip: PositiveFloat = 0.2
    """How far from 1 the ratio of a token's new and old probability goes on paying."""
    critic_weight: FloatOrZero = 0.1
    """Weight of the critic's squared error in the loss. Only with `advantage` `"critic"`."""
    lam: Fraction = 0.95
    """Lambda of generalised advantage estimation. Only with `advantage` `"critic"`."""
    temperature: PositiveFloat = 1.0
    """Of the distribution that answers are drawn from and scored by; nothing is cut off it."""
    max_new_tokens: Tokens = 256
    """Longest answer. Prompts that leave no room for it in `batch.seq_len` are left out."""
    missing_eos: FloatOrZero = 1.0
    """What is taken off the reward of an answer that has not ended by then."""
    stop_kl: Annotated[FloatOrZero, Unit("nats an answer")] = 0.0
    """End the run when the answers of an iteration are further from the reference than this. 0:
    never."""
    prompts_at_once: Annotated[Count, Unit("prompts")] = 16
    """Prompts in one batch of one worker while it draws: more are faster, as far as memory goes.
    All draw the same answers, but for rounding."""

    @property
    def rewards(self) -> tuple[tuple[str, float], ...]:
        """Names and weights."""
        names = (self.reward,) if isinstance(self.reward, str) else self.reward
        return tuple(zip(names, self.reward_weights or [1.0] * len(names), strict=True))

    @property
    def updates(self) -> int:
        """Optimizer steps of an iteration."""
        return self.epochs * self.minibatches

    @model_validator(mode="after")
    def check_rewards(self) -> "Ppo":
        names = (self.reward,) if isinstance(self.reward, str) else self.reward
        if not names:
            raise ValueError("reward names no reward")
        if self.reward_weights and len(self.reward_weights) != len(names):
            raise ValueError(
                f"reward_weights has {len(self.reward_weights)} numbers for {len(names)} rewards"
            )
        return self

    @model_validator(mode="after")
    def check_group(self) -> "Ppo":
        if self.advantage == "group" and self.group < 2:
            raise ValueError(
                'advantage = "group" compares the answers to a prompt: set group to 2 or more, or '
                'advantage = "critic"'
            )
        return self


class Pairs(Section):
    """How `raysft pairs` makes pairs of a model's own answers to the prompts of `data.path`."""

    reward: Place = "exact"
    """What an answer is worth: `"exact"` (the record's own answer), `"number"` (its last number),
    `"demo"` (a right answer to a built-in task), `FILE.py:FUNCTION`, whose function gets prompt,
    answer and the record's own answer, or a reward model: its folder, or its run's."""
    samples: Annotated[int, Field(ge=2), Unit("answers")] = 8
    """Answers drawn for each prompt. The best and the worst of them make a pair, unless all are
    worth the same."""
    temperature: PositiveFloat = 1.0
    """Of the distribution that answers are drawn from; nothing is cut off it."""
    max_new_tokens: Tokens = 256
    """Longest answer. What has not ended by then is left out."""
    prompts_at_once: Annotated[Count, Unit("prompts")] = 16
    """Prompts in one batch of one worker: more are faster, as far as memory goes. All draw the same
    answers, but for rounding."""
