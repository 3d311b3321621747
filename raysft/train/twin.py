"""Plain models beside an engine, with its weights: one to draw answers with, one as reference.

The engine's own model would ask every rank for its part of the weights at every token, so that no
rank could stop before the others. A copy has all of them: it writes for as long as it likes.
"""

import copy
from typing import Any

import torch

from raysft.model.adapter import inject, peft_config_of
from raysft.model.cpu_bf16 import widen_linears
from raysft.model.load import auto_class, fuse_gelu
from raysft.train.loss import inner


def plain_copy(engine: Any, attention: str | None = None) -> Any:
    """A causal model on this rank's device, frozen, with the engine's weights as they are now, and
    with its adapter where it has one.

    attention: its name in transformers; default, that of the engine. Every rank must call it.
    """
    model = inner(engine)
    hf_config = copy.deepcopy(model.config)
    twin = auto_class(False).from_config(
        hf_config,
        attn_implementation=attention or model.config._attn_implementation,
        dtype=next(model.parameters()).dtype,
    )
    fuse_gelu(twin)
    if adapter := peft_config_of(model):
        inject(twin, copy.deepcopy(adapter))
    widen_linears(twin)
    twin = twin.eval().requires_grad_(False).to(engine.device)
    copy_weights(engine, twin)
    return twin


@torch.no_grad()
def copy_weights(engine: Any, twin: Any) -> None:
    """One parameter gathered at a time. Every rank must call it."""
    import deepspeed

    partitioned = engine.zero_optimization_stage() == 3
    engine.empty_partition_cache()  # an evaluation leaves prefetched parameters in flight
    model = inner(engine)
    own = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        with deepspeed.zero.GatheredParameters([own[name]], enabled=partitioned):
            parameter.copy_(own[name])
    buffers = dict(model.named_buffers())
    for name, buffer in twin.named_buffers():
        buffer.copy_(buffers[name])
