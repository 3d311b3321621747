"""A value head on a causal model: what the rest of an answer is expected to bring, at each token.

It shares the trunk with the policy and is trained with it. It is none of the exported model's.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from raysft.model.initialise import whole_on_cpu

HEAD = "value_head"
T = TypeVar("T")


def add_value_head(model: Any, deepspeed_config: dict[str, Any]) -> None:
    """Which expects 0 of everything. Every rank must call it."""
    import deepspeed

    partitioned = deepspeed_config["zero_optimization"]["stage"] == 3
    into = (
        deepspeed.zero.Init(config_dict_or_path=deepspeed_config) if partitioned else nullcontext()
    )
    weight = model.get_output_embeddings().weight
    width = getattr(weight, "ds_shape", weight.shape)[1]
    with into:
        head = nn.Linear(width, 1, dtype=weight.dtype)
    with torch.no_grad(), whole_on_cpu(list(head.parameters())):
        for parameter in head.parameters():
            parameter.data.zero_()
    model.add_module(HEAD, head)


def value_head(model: Any) -> nn.Module | None:
    """model: a Hugging Face one, or an engine with one."""
    return getattr(getattr(model, "module", model), HEAD, None)


def values_at(head: nn.Module, hidden: Tensor) -> Tensor:
    """fp32 [n], of hidden states [n, d]."""
    values: Tensor = head(hidden)
    return values[:, 0].float()


def without_value_head(named: Mapping[str, T]) -> dict[str, T]:
    """Of weights by name, those of the model alone."""
    return {name: value for name, value in named.items() if not name.startswith(f"{HEAD}.")}
