"""Attention over packed records: each sees itself only, and no T x T mask is ever made."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED = "raysft_packed"  # its name among transformers' attention implementations


def packed_attention(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    borders: list[int] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention, one call a record. query [1, H, T, D], key and value [1, K, T, D], K <= H.

    borders: [R + 1], where the R records of the row begin and end; without it the row is one
    record. Returns [1, T, H, D].

    On a CPU always in fp32. That is as fast for records of some hundred tokens, and in bf16 PyTorch
    compiles kernels for each length of a record and keeps them: tens of MiB a step.
    """
    if attention_mask is not None:
        raise ValueError("packed records take no attention mask")
    dtype = query.dtype
    query, key, value = wide(query), wide(key), wide(value)

    def narrow(kept: Tensor) -> Tensor:
        return kept.to(dtype) if kept.dim() == 4 else kept  # not the log-sum-exp

    # Widened tensors are kept for the backward pass as narrow as they came.
    with torch.autograd.graph.saved_tensors_hooks(narrow, wide):
        outputs = [
            F.scaled_dot_product_attention(
                query[:, :, begin:end],
                key[:, :, begin:end],
                value[:, :, begin:end],
                dropout_p=dropout,
                scale=scaling,
                is_causal=True,
                enable_gqa=key.shape[1] != query.shape[1],
            )
            for begin, end in pairwise(borders or [0, query.shape[2]])
        ]
    return torch.cat(outputs, dim=2).transpose(1, 2).to(dtype), None


def wide(x: Tensor) -> Tensor:
    """x in the type that attention is computed in, whatever cpu_bf16.widen() does to the rest."""
    on_cpu = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
    return x.float() if on_cpu else x


def register() -> None:
    """Make `PACKED` known to transformers. It needs no mask, so none is made for it."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, lambda *_, **__: None)
