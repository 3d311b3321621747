"""The weights of a model from scratch: by the seed alone, whatever the ZeRO stage or device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def from_scratch(model_class: Any, hf_config: Any, options: dict[str, Any], seed: int) -> Any:
    """A model whose weights are drawn once.

    transformers and PyTorch draw them too while they make it, for GPT-2 Large twice as long as it
    takes here. Where that left a weight which `initialise` does not set, they do.
    """
    from transformers.initialization import no_init_weights
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        with no_init_weights():
            model = model_class.from_config(hf_config, **options)
        model.tie_weights()
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
        initialise(model, seed)
        if not any(parameter.isnan().any() for parameter in model.parameters()):
            return model
    model = model_class.from_config(hf_config, **options)
    initialise(model, seed)
    return model


@torch.no_grad()
def initialise(model: Any, seed: int) -> None:
    """As transformers does when it makes the model, once more and in an order of its own.

    While it makes it, PyTorch draws default weights first, which ZeRO-3 leaves out; a module that
    ZeRO-3 has placed on a GPU draws there. Every rank must call it.
    """
    for module in model.modules():
        module._is_hf_initialized = False  # or transformers would leave it as it is
    torch.manual_seed(seed)
    draw(model, model._initialize_weights)
    model.tie_weights()


def draw(module: nn.Module, of_model: Any) -> None:
    """Children first; `of_model` is the initialisation of the model that a module belongs to."""
    from transformers import PreTrainedModel

    for child in module.children():
        draw(child, child._initialize_weights if isinstance(child, PreTrainedModel) else of_model)
    # transformers may set the weights of a direct child again, as GPT-2 does.
    within = [c for c in module.children() if not isinstance(c, PreTrainedModel)]
    parameters = [p for one in (module, *within) for p in one.parameters(recurse=False)]
    with whole_on_cpu(list(dict.fromkeys(parameters))):
        of_model(module)


@contextmanager
def whole_on_cpu(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Gathered where ZeRO-3 has cut them up, and where every stage draws the same numbers."""
    import deepspeed

    cut = any(hasattr(parameter, "ds_id") for parameter in parameters)
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0, enabled=cut):
        placed = [parameter.data for parameter in parameters]
        for parameter in parameters:
            parameter.data = parameter.data.cpu()
        yield
        for parameter, data in zip(parameters, placed, strict=True):
            parameter.data = data.copy_(parameter.data)
