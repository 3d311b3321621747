"""Masked negative log-likelihood: the only place that shifts labels.

Position t predicts token t + 1, so the logits of positions 0..T-2 meet the tokens 1..T-1. Only
positions that predict a token to be scored reach the LM head, and these in chunks: the memory of
the loss is set by the chunk, never by batch x length x vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raysft.data.batch import Batch
from raysft.train.products import widen

CHUNK_BYTES = 128 << 20  # of fp32 logits
# What some models do to their logits after the head; the chunks would not see it.
AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_soft_cap")


def supervised_nll(model: Any, batch: Batch) -> Tensor:
    """Sum of -log P(x_t given x_<t) over the supervised tokens of the batch, in nats, fp32 [].

    Not yet a mean: the caller divides by the supervised tokens of the whole optimizer step.
    """
    if not has_plain_head(model):
        return token_nll(model, batch, batch.supervised).sum()
    targets = batch.input_ids.flatten()[batch.supervised]

    def sum_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        nll: Tensor = SummedNLL.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
        return nll

    with head_computes(model, sum_nll):
        return forward_at(model, batch, batch.supervised)


def token_nll(model: Any, batch: Batch, tokens: Tensor) -> Tensor:
    """-log P of n tokens, in nats, fp32 [n]. tokens: int64 [n], places in the flattened rows."""
    targets = batch.input_ids.flatten()[tokens]
    if not has_plain_head(model) or torch.is_grad_enabled():
        logits = forward_at(model, batch, tokens)
        return F.cross_entropy(logits[0].float(), targets, reduction="none")

    def each_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wide, bias = widen(weight), None if bias is None else widen(bias)
        parts = [
            F.cross_entropy(F.linear(widen(h), wide, bias).float(), t, reduction="none")
            for h, t in chunks(weight, hidden, targets)
        ]
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)

    with head_computes(model, each_nll):
        return forward_at(model, batch, tokens)


class SummedNLL(torch.autograd.Function):
    """Sum of the NLL of targets [n] from hidden states [n, d] and the head's weight [V, d].

    The gradients are computed in the forward pass, chunk by chunk, while the logits are there:
    d nll / d logits = softmax(logits) - one_hot(target).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        nll = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden)
        wide, wide_bias = widen(weight), None if bias is None else widen(bias)
        several = len(hidden) > chunk_rows(weight)  # sums of many bf16 products lose small terms
        dtype = torch.float32 if several else wide.dtype
        grad_weight = torch.zeros_like(weight, dtype=dtype) if weight.requires_grad else None
        grad_bias = None if bias is None else torch.zeros_like(bias)
        begin = 0
        for h, t in chunks(weight, hidden, targets):
            h = widen(h)
            log_p = F.log_softmax(F.linear(h, wide, wide_bias), dim=-1, dtype=torch.float32)
            nll -= log_p.gather(1, t[:, None]).sum()
            probabilities = log_p.exp_()
            probabilities.scatter_add_(1, t[:, None], probabilities.new_full((len(t), 1), -1.0))
            grad_logits = probabilities.to(h.dtype)
            grad_hidden[begin : begin + len(h)] = grad_logits @ wide
            if grad_weight is not None:
                grad_weight += grad_logits.T @ h
            if grad_bias is not None:
                grad_bias += probabilities.sum(0).to(grad_bias.dtype)
            begin += len(h)
        ctx.dtype = weight.dtype
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = (None if g is None else g.mul_(grad) for g in ctx.saved_tensors)
        return hidden, None if weight is None else weight.to(ctx.dtype), bias, None


def chunks(weight: Tensor, hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = chunk_rows(weight)
    for begin in range(0, len(hidden), rows):
        yield hidden[begin : begin + rows], targets[begin : begin + rows]


def chunk_rows(weight: Tensor) -> int:
    return max(1, CHUNK_BYTES // (4 * weight.shape[0]))


def forward_at(model: Any, batch: Batch, tokens: Tensor) -> Tensor:
    """The output of the model's head at the positions that predict these tokens."""
    positions = tokens - 1

    def keep_positions(_module: Any, _args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[positions].unsqueeze(0)
        return output

    # A hook on the decoder rather than our own call of the head: what a model does to its logits
    # stays in force. First in line, before ZeRO-3 looks at the output.
    decoder = getattr(model, "module", model).base_model
    hook = decoder.register_forward_hook(keep_positions, prepend=True)
    try:
        output: Tensor = model(input_ids=batch.input_ids, use_cache=False, **batch.inputs).logits
    finally:
        hook.remove()
    return output


Head = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@contextmanager
def head_computes(model: Any, compute: Head) -> Iterator[None]:
    """Let the LM head return `compute(hidden [n, d], weight, bias)` in place of logits.

    Inside the module's own forward, so that ZeRO-3 gathers the weight for it and every rank runs
    the same modules, whatever the number of its chunks.
    """
    head = getattr(model, "module", model).get_output_embeddings()
    before = head.forward
    head.forward = lambda hidden: compute(hidden[0], head.weight, head.bias)
    try:
        yield
    finally:
        head.forward = before


def has_plain_head(model: Any) -> bool:
    """Whether the logits are the linear head's output and nothing is done to them after it."""
    module = getattr(model, "module", model)
    head = module.get_output_embeddings()
    changed = any(getattr(module.config, name, None) not in (None, 1.0) for name in AFTER_HEAD)
    return isinstance(head, nn.Linear) and not changed
