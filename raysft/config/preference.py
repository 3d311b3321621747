"""[reward_model], [dpo]: what is learnt from preference pairs."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysft.config.section import FloatOrZero, PositiveFloat, Section


class RewardModel(Section):
    """The loss of `raysft reward`."""

    center: FloatOrZero = 0.01
    """Weight of the squared sum of a pair's two rewards, which keeps them around 0. The pairs alone
    tell differences only."""
    margins: bool = True
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
