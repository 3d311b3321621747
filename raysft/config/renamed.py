"""Keys by the names that they had before: still read, in a config and in what old runs keep."""

from collections.abc import Mapping
from typing import Any

from raysft.errors import UserError

MASK_PROMPT, WEIGHT = "mask_prompt", "prompt_loss_weight"  # of [data]


def as_named_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """A raw config with `data.prompt_loss_weight` for `data.mask_prompt`: 0 for true, 1 for false.

    Raises UserError where it holds both, or what is no truth value.
    """
    data = config.get("data")
    if not isinstance(data, Mapping) or MASK_PROMPT not in data:
        return dict(config)
    masks = data[MASK_PROMPT]
    if WEIGHT in data:
        raise UserError(
            f"data.{MASK_PROMPT} is the old spelling of data.{WEIGHT}, which is set too: leave out "
            "the old one"
        )
    if not isinstance(masks, bool):
        raise UserError(
            f"data.{MASK_PROMPT} {masks!r} is neither true nor false: set data.{WEIGHT} instead"
        )
    others = {key: value for key, value in data.items() if key != MASK_PROMPT}
    return {**config, "data": {**others, WEIGHT: 0.0 if masks else 1.0}}


def hints(config: Mapping[str, Any]) -> list[str]:
    """What to write instead of old names."""
    data = config.get("data")
    if not isinstance(data, Mapping) or MASK_PROMPT not in data:
        return []
    weight = 0 if data[MASK_PROMPT] else 1
    return [f"data.{MASK_PROMPT} is now data.{WEIGHT}: write data.{WEIGHT} = {weight}"]
