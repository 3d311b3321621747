"""Masked negative log-likelihood: the only place that shifts labels.

Position t predicts token t + 1, so the logits of positions 0..T-2 meet the tokens 1..T-1. Only
positions that predict a token to be scored reach the LM head, and their logits exist for a block
of tokens at a time: the loss never holds batch x length x vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raysft.data.batch import Batch
from raysft.model.cpu_bf16 import widen

BLOCK_BYTES = 64 << 20  # of fp32 logits; measured on a CPU: with half of it 8 % more time
WIDENED_ROWS = 8192  # of the head's weight at once, where it is widened
# What some models do to their logits after the head; the chunks would not see it.
AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_soft_cap")


def supervised_nll(model: Any, batch: Batch, gradient_scale: float = 1.0) -> Tensor:
    """Sum of -log P(x_t given x_<t) over the supervised tokens of the batch, in nats, fp32 [].

    Not yet a mean: the caller divides by the supervised tokens of the whole optimizer step.

    gradient_scale: about what the sum will be multiplied by before its backward. It changes no
    gradient, but is there from the start, so that in fp16 none is too small or too large.
    """
    targets = batch.input_ids.flatten()[batch.supervised]
    if not has_plain_head(model):
        return token_nll(model, batch, batch.supervised).sum()

    def nll(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = HeadNLL.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, targets, gradient_scale
        )
        return result

    with head_computes(model, nll):
        return forward_at(model, batch, batch.supervised)


def token_nll(model: Any, batch: Batch, tokens: Tensor) -> Tensor:
    """-log P of n tokens, in nats, fp32 [n]. tokens: int64 [n], places in the flattened rows.

    To evaluate: with a plain head there is no gradient.
    """
    targets = batch.input_ids.flatten()[tokens]
    if not has_plain_head(model):
        logits = forward_at(model, batch, tokens)
        return F.cross_entropy(logits[0].float(), targets, reduction="none")

    @torch.no_grad()
    def nll(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = torch.empty_like(targets, dtype=torch.float32)
        for some in token_blocks(hidden, weight):
            logs = log_probabilities(hidden[some], weight, bias)
            result[some] = -logs.gather(1, targets[some, None])[:, 0]
        return result

    with head_computes(model, nll):
        return forward_at(model, batch, tokens)


class HeadNLL(torch.autograd.Function):
    """The sum of the NLL of targets [n] from hidden states [n, d] and the head's weight [V, d].

    The gradient is made in the same pass, while a block of logits is there, and only scaled in the
    backward: d nll / d logits = softmax(logits) - one_hot(target). So logits are computed once and
    kept for one block of tokens (the method of Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        gradient_scale: float = 1.0,
    ) -> Tensor:
        nll = torch.zeros((), device=hidden.device)
        grads = [torch.zeros_like(t) for t in (hidden, weight)]
        grads += [] if bias is None else [torch.zeros_like(bias)]
        for some in token_blocks(hidden, weight):
            logs, target = log_probabilities(hidden[some], weight, bias), targets[some, None]
            nll -= logs.gather(1, target).sum()
            grad_logits = logs.exp_().scatter_add_(1, target, -torch.ones_like(target).float())
            if gradient_scale != 1.0:
                grad_logits *= gradient_scale
            add_gradients(grad_logits, some, hidden, weight, *grads)
        ctx.save_for_backward(*grads)
        ctx.gradient_scale = gradient_scale
        return nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rest = grad / ctx.gradient_scale
        grad_hidden, grad_weight, *grad_bias = (g.mul_(rest) for g in ctx.saved_tensors)
        return grad_hidden, grad_weight, grad_bias[0] if grad_bias else None, None, None


def add_gradients(
    grad_logits: Tensor,
    some: slice,
    hidden: Tensor,
    weight: Tensor,
    grad_hidden: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor | None = None,
) -> None:
    """Add to the gradients of all that made the logits what a block of tokens [b, V] gives."""
    rows = widen(hidden[some])
    if grad_bias is not None:
        grad_bias += grad_logits.sum(0)
    for block, wide in vocabulary_blocks(weight):
        grad = grad_logits[:, block].to(wide.dtype)
        if wide.dtype == weight.dtype:
            # Rounded once, with the sum so far.
            grad_hidden[some].addmm_(grad, wide)
            grad_weight[block].addmm_(grad.T, rows)
        else:
            grad_hidden[some] += grad @ wide
            grad_weight[block] += grad.T @ rows


def token_blocks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Equal parts of the n tokens, whose logits take at most BLOCK_BYTES in fp32."""
    count = len(hidden)
    most = max(1, BLOCK_BYTES // (4 * len(weight)))
    size = -(-count // max(1, -(-count // most)))
    for begin in range(0, count, max(1, size)):
        yield slice(begin, min(begin + size, count))


def log_probabilities(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """log softmax of the logits, fp32 [b, V]."""
    rows = widen(hidden)
    parts = [F.linear(rows, wide) for _, wide in vocabulary_blocks(weight)]
    logits = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    del parts
    if bias is not None:
        logits = logits + bias
    return F.log_softmax(logits, dim=1, dtype=torch.float32)


def vocabulary_blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The weight [V, d] as products take it: whole, or a part after the other where it is widened,
    so that never all of it is there twice."""
    if widen(weight[:1]).dtype == weight.dtype:
        yield slice(None), weight
        return
    for begin in range(0, len(weight), WIDENED_ROWS):
        block = slice(begin, begin + WIDENED_ROWS)
        yield block, widen(weight[block])


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
