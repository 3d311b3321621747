"""[align]: what differs in a stage of `raysft align`."""

from collections.abc import Mapping
from typing import Any

from raysft.config.section import Section

Tables = Mapping[str, Mapping[str, Any]]
NONE: Tables = {}


class Align(Section):
    """The stages of `raysft align` read the config as it stands, and over it the tables of their
    own: `[align.ppo.optim]` is the `[optim]` of the last stage. Where model, pairs and reward come
    from in between is the chain's own affair."""

    sft: Tables = NONE
    """Of the first stage, supervised tuning on `data.path`."""
    pairs: Tables = NONE
    """Of the second one, which draws answers of the tuned model, to be paired by `pairs.reward`."""
    reward: Tables = NONE
    """Of the third one, the reward model of those pairs."""
    ppo: Tables = NONE
    """Of the last one, which goes on from the tuned model. Its `ppo.reward` is the reward model,
    unless it is set here."""
