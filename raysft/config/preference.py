"""[reward_model], [dpo], [pairs]: what is learnt from preference pairs, and how some are made."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysft.config.section import Count, FloatOrZero, Place, PositiveFloat, Section, Tokens, Unit


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
    """Prompts in one batch of one worker. Another number draws other answers."""
