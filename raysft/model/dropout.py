"""Dropout by all the names that architectures have for it."""

import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn

from raysft.errors import UserError

# Probabilities of a single element, in the configs of transformers' causal LMs: attn_pdrop,
# hidden_dropout_prob, residual_dropout and so on.
PROBABILITY = re.compile(r"pdrop|dropout", re.IGNORECASE)
# Noise of another kind: of whole layers left out, and of a router's inputs. No probability of
# dropout says how much of it is meant.
OTHER_NOISE = re.compile(r"layer_?drop|drop_path|jitter", re.IGNORECASE)


def set_dropout(hf_config: Any, probability: float) -> None:
    """In a Hugging Face config and the configs in it. 0 also ends noise of another kind.

    Raises UserError where the config takes no such value.
    """
    from transformers import PreTrainedConfig

    for name, value in list(vars(hf_config).items()):
        if isinstance(value, PreTrainedConfig):
            set_dropout(value, probability)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            continue
        elif probability == 0 and (OTHER_NOISE.search(name) or PROBABILITY.search(name)):
            setattr(hf_config, name, type(value)(0))  # some are declared as whole numbers
        elif PROBABILITY.search(name) and not OTHER_NOISE.search(name):
            set_probability(hf_config, name, probability)


def set_probability(hf_config: Any, name: str, probability: float) -> None:
    try:
        setattr(hf_config, name, probability)
    except StrictDataclassError as error:
        raise UserError(
            f"model.dropout {probability:g}: {type(hf_config).__name__} takes no such {name}: "
            f"{' '.join(str(error).split())}. Set model.dropout = 0"
        ) from None


def set_module_dropout(model: nn.Module, probability: float) -> None:
    """In the modules of a model, where an architecture takes it from no config."""
    for module in dropouts(model):
        module.p = probability


def dropouts(model: nn.Module) -> Iterator[nn.modules.dropout._DropoutNd]:
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            yield module
