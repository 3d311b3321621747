"""Attention over packed records: each sees itself only, and no mask over the pack is ever made."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raysft.errors import UserError

PACKED = "raysft_packed"  # its name among transformers' attention implementations
# What some models ask of attention and neither way here computes: silence would train another
# model than the one that is exported.
REFUSED = ("sinks", "position_bias", "indices", "block_indices")
# The windows that attention was given: a model may have one and not pass it on.
told_windows: set[int] = set()

# Queries, keys and values of one record, and which tokens are seen (None: all before): its output.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    record_lengths: Sequence[int] | None = None,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention of R records. query [1, H, T, D], key and value [1, K, T, D], K <= H.

    record_lengths: R lengths that sum to T; without it the row is one record. cu_seq_lens_q: int32
    [R + 1], where they begin and end, for the GPU. sliding_window: how many tokens each token
    sees, itself among them. softcap: what a tanh limits the scores to. s_aux: [H], the score of a
    token that has no value, as gpt-oss has. Returns [1, T, H, D].

    Raises UserError where the model asks for what is not computed here.
    """
    if attention_mask is not None:
        raise ValueError("packed records take no attention mask")
    for name in REFUSED:
        if others.get(name) is not None:
            raise UserError(
                f"{type(module).__name__} needs {name} in its attention, which packed records do "
                'not have: set batch.packing = false and model.attention = "eager"'
            )
    if sliding_window is not None:
        told_windows.add(sliding_window)
    lengths = record_lengths or [query.shape[2]]
    plain = softcap is None and s_aux is None
    if cu_seq_lens_q is not None and has_varlen(query) and plain and not dropout:
        return varlen(query, key, value, cu_seq_lens_q, max(lengths), scaling, sliding_window), None
    attend: Attend = partial(fused, scaling, dropout)
    if not plain:
        attend = partial(scored, scaling, dropout, softcap, s_aux)
    return by_record(query, key, value, lengths, attend, sliding_window), None


def by_record(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    attend: Attend,
    window: int | None = None,
) -> Tensor:
    """One call of `attend` a record.

    On a CPU always in fp32. That is as fast for records of some hundred tokens, and in bf16 PyTorch
    compiles kernels for each length of a record and keeps them: tens of MiB a step.
    """
    dtype = query.dtype

    def narrow(kept: Tensor) -> Tensor:
        return kept.to(dtype) if kept.dim() == 4 else kept  # not the log-sum-exp

    # split() rather than slices: the backward pass of a slice fills a tensor as long as the pack.
    records = zip(
        *(torch.split(wide(x), list(lengths), dim=2) for x in (query, key, value)), strict=True
    )
    # Widened tensors are kept for the backward pass as narrow as they came.
    with torch.autograd.graph.saved_tensors_hooks(narrow, wide):
        outputs = [attend(q, k, v, window_mask(q, window)) for q, k, v in records]
    # Contiguous, as some models take a view of it.
    return torch.cat(outputs, dim=2).transpose(1, 2).to(dtype).contiguous()


def fused(
    scaling: float | None, dropout: float, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    """PyTorch's own, [1, H, T, D]. mask: which tokens are seen, causal where there is none."""
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
        is_causal=mask is None,
        enable_gqa=k.shape[1] != q.shape[1],
    )


def scored(
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """The same by its scores [1, H, T, T], for what the fused one does not compute."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril_()
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        aside = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, aside], dim=-1)
    probabilities = F.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    return probabilities[..., : k.shape[2]] @ v


def window_mask(query: Tensor, window: int | None) -> Tensor | None:
    """Which tokens of its record each token sees, bool [T, T]: of the newest `window` of them.

    None where the record is no longer than that.
    """
    length = query.shape[2]
    if window is None or length <= window:
        return None
    all_pairs = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return all_pairs.tril_().triu_(1 - window)


def wide(x: Tensor) -> Tensor:
    """x in the type that attention is computed in, whatever cpu_bf16.widen() does to the rest."""
    on_cpu = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
    return x.float() if on_cpu else x


def has_varlen(query: Tensor) -> bool:
    """Whether torch's flash attention takes this type, device and width of a head."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and is_ampere(query.device)
    )


@cache
def is_ampere(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None = None,
) -> Tensor:
    """One call for all records, whose lengths are data and not shapes: nothing is compiled anew,
    as cuDNN's attention does for each length."""
    attend, knows_groups = varlen_kernel()
    # squeeze() rather than [0], whose backward pass copies each gradient into a tensor of zeros.
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    options: dict[str, Any] = {}
    group = q.shape[1] // k.shape[1]  # query heads to a head of keys and values
    if knows_groups:
        options["enable_gqa"] = group > 1
    elif group > 1:  # of one, it would copy them all the same
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    seen = (-1 if window is None else window - 1, 0)  # to the left, to the right
    output: Tensor = attend(
        q, k, v, borders, borders, longest, longest, scale=scaling, window_size=seen, **options
    )
    return output[None]


@cache
def varlen_kernel() -> tuple[Callable[..., Tensor], bool]:
    """torch's function, and whether it knows grouped queries, as from torch 2.12 on."""
    from torch.nn.attention import varlen

    attend: Callable[..., Any] = varlen.varlen_attn
    return attend, "enable_gqa" in signature(attend).parameters


def register() -> None:
    """Make `PACKED` known to transformers.

    Not to its masks: it makes none for what it does not know there. For what needs none it first
    looks whether rows are packed, and the GPU would have to be waited for.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
