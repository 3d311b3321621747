"""Masked negative log-likelihood: the only place that shifts labels.

Position t predicts token t + 1, so the logits of positions 0..T-2 meet the tokens 1..T-1. Only
positions that predict a token to be scored reach the LM head, and their logits exist for a block
of the vocabulary at a time: the loss never holds batch x length x vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raysft.data.batch import Batch
from raysft.train.products import widen

BLOCK_BYTES = 8 << 20  # of fp32 logits
MIN_BLOCK_TOKENS = 256  # of the vocabulary; products with fewer are slow
# What some models do to their logits after the head; the chunks would not see it.
AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_soft_cap")


def supervised_nll(model: Any, batch: Batch) -> Tensor:
    """Sum of -log P(x_t given x_<t) over the supervised tokens of the batch, in nats, fp32 [].

    Not yet a mean: the caller divides by the supervised tokens of the whole optimizer step.
    """
    return token_nll(model, batch, batch.supervised).sum()


def token_nll(model: Any, batch: Batch, tokens: Tensor) -> Tensor:
    """-log P of n tokens, in nats, fp32 [n]. tokens: int64 [n], places in the flattened rows."""
    targets = batch.input_ids.flatten()[tokens]
    if not has_plain_head(model):
        logits = forward_at(model, batch, tokens)
        return F.cross_entropy(logits[0].float(), targets, reduction="none")

    def nll(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = HeadNLL.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
        return result

    with head_computes(model, nll):
        return forward_at(model, batch, tokens)


class HeadNLL(torch.autograd.Function):
    """The NLL [n] of targets [n] from hidden states [n, d] and the head's weight [V, d].

    The logits are computed twice, first for their sum, then for the gradient, d nll / d logits =
    softmax(logits) - one_hot(target). That costs a third more products in the head than keeping
    them, and saves n x V numbers (Wijmans et al. 2024, "Cut Your Losses", arXiv:2411.09009).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        log_sum = torch.full_like(targets, -torch.inf, dtype=torch.float32)
        target_logit = torch.zeros_like(log_sum)
        for block, _, logits in logit_blocks(widen(hidden), weight, bias):
            log_sum = torch.logaddexp(log_sum, logits.logsumexp(dim=1))
            column, inside = columns(targets, block)
            target_logit += logits.gather(1, column).mul_(inside)[:, 0]
        ctx.save_for_backward(hidden, weight, bias, targets, log_sum)
        return log_sum - target_logit

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_sum = ctx.saved_tensors
        wide_hidden = widen(hidden)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = None if bias is None else torch.empty_like(bias)
        for block, wide, logits in logit_blocks(wide_hidden, weight, bias):
            probabilities = logits.sub_(log_sum[:, None]).exp_()
            column, inside = columns(targets, block)
            probabilities.scatter_add_(1, column, -inside)
            grad_logits = probabilities.mul_(grad[:, None])
            if grad_bias is not None:
                grad_bias[block] = grad_logits.sum(0)
            grad_logits = grad_logits.to(wide.dtype)
            grad_hidden += grad_logits @ wide
            if grad_weight is not None:
                grad_weight[block] = grad_logits.T @ wide_hidden
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None


def logit_blocks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of the vocabulary: which, their weight [b, d] widened, their logits in fp32 [n, b]."""
    size = max(MIN_BLOCK_TOKENS, BLOCK_BYTES // (4 * max(1, len(hidden))))
    for begin in range(0, len(weight), size):
        block = slice(begin, min(begin + size, len(weight)))
        wide = widen(weight[block])
        logits = F.linear(hidden, wide).float()
        yield block, wide, logits if bias is None else logits.add_(bias[block])


def columns(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Where in a block [n, b] of logits each target is, int64 [n, 1], and 1.0 if it is, else 0.0.

    Without a search for those inside, whose number the CPU would have to wait for.
    """
    column = targets[:, None] - block.start
    last = block.stop - block.start - 1
    return column.clamp(0, last), ((column >= 0) & (column <= last)).float()


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
