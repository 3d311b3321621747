"""The LM head and the negative log-likelihood in one, a block of logits at a time."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raysft.model.cpu_bf16 import widen

# Of a block's logits in fp32. On a CPU with half of it 8 % more time (measured); a GPU wants rows
# by the thousand for its products, and has the memory.
BLOCK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
WIDENED_ROWS = 8192  # of the head's weight at once, where it is widened
# The vocabulary is filled up to a multiple of so many tokens, which no target is. GPT-2 has 50,257,
# which is odd: an H200 took 7 and 9 times as long for two of the head's three products (measured).
ALIGNED = {"cpu": 1, "cuda": 64}
# The type in which the gradients of several blocks are summed; None is that of the weight, which a
# CPU's product adds to as it goes. A GPU has the bandwidth for more.
SUMMED_IN = {"cpu": None, "cuda": torch.float32}

# Of hidden states, weight and bias; None where one is not trained, or not there.
Gradients = tuple[Tensor, Tensor | None, Tensor | None]


class HeadNLL(torch.autograd.Function):
    """The sum of the NLL of targets [n] from hidden states [n, d] and the head's weight [V, d].

    The gradient is made in the same pass, while a block of logits is there, and only scaled in the
    backward: d nll / d logits = softmax(logits) - one_hot(target). So logits are computed once and
    kept for one block of tokens (the method of Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989).

    token_weights: fp32 [n], what each NLL is multiplied by; None where all are 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        gradient_scale: float = 1.0,
        token_weights: Tensor | None = None,
    ) -> Tensor:
        nll = torch.zeros((), device=hidden.device)
        head = filled_up(weight)
        grads = no_gradients(hidden, head, bias, trains=ctx.needs_input_grad[1])
        for some in token_blocks(hidden, head):
            target = targets[some, None]
            logits = head_logits(hidden[some], head, bias, len(weight))
            logs = F.log_softmax(logits, dim=1, dtype=torch.float32)
            of_target = logs.gather(1, target)
            scale: float | Tensor = gradient_scale
            if token_weights is None:
                nll -= of_target.sum()
            else:
                weights = token_weights[some, None]
                nll -= (of_target * weights).sum()
                scale = weights * gradient_scale
            grad_logits = gradient(logs, target, of_target, scale, out=logits)
            add_gradients(grad_logits, some, hidden, head, *grads)
        ctx.save_for_backward(*of_weight(weight, grads))
        ctx.gradient_scale = gradient_scale
        return nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rest = grad / ctx.gradient_scale
        grads = (None if g is None else g.mul_(rest) for g in ctx.saved_tensors)
        return *grads, None, None, None


class HeadLogProbability(torch.autograd.Function):
    """log P of each target, fp32 [n], as HeadNLL sums it up.

    What a loss makes of them is not known in the forward pass, so the backward computes the logits
    once more, again a block of tokens at a time: d log P / d logits = one_hot(target) - softmax.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        result = torch.empty_like(targets, dtype=torch.float32)
        head = filled_up(weight)
        for some in token_blocks(hidden, head):
            logits = head_logits(hidden[some], head, bias, len(weight))
            logs = F.log_softmax(logits, dim=1, dtype=torch.float32)
            result[some] = logs.gather(1, targets[some, None])[:, 0]
        ctx.save_for_backward(hidden, weight, bias, targets)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        head = filled_up(weight)
        grads = no_gradients(hidden, head, bias, trains=ctx.needs_input_grad[1])
        for some in token_blocks(hidden, head):
            target = targets[some, None]
            logits = head_logits(hidden[some], head, bias, len(weight))
            logs = F.log_softmax(logits, dim=1, dtype=torch.float32)
            of_target = logs.gather(1, target)
            grad_logits = gradient(logs, target, of_target, -grad[some, None], out=logits)
            add_gradients(grad_logits, some, hidden, head, *grads)
        return *of_weight(weight, grads), None


def no_gradients(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, trains: bool) -> Gradients:
    """Zeros to which `add_gradients` adds those of all blocks. trains: whether the head is."""
    several = len(list(token_blocks(hidden, weight))) > 1
    summed = SUMMED_IN[hidden.device.type] if several else weight.dtype
    return (
        torch.zeros_like(hidden),
        torch.zeros_like(weight, dtype=summed) if trains else None,
        torch.zeros_like(bias) if trains and bias is not None else None,
    )


def of_weight(weight: Tensor, grads: Gradients) -> Gradients:
    """Of the rows that it has and in its type, once the sum is complete."""
    hidden, summed, bias = grads
    return hidden, None if summed is None else summed[: len(weight)].to(weight.dtype), bias


def gradient(
    logs: Tensor, target: Tensor, of_target: Tensor, scale: float | Tensor, *, out: Tensor
) -> Tensor:
    """`scale`, or that of each token [b, 1], times softmax - one_hot, computed in fp32 and rounded
    once, into the memory of the logits [b, V]. Overwrites logs."""
    if not isinstance(scale, Tensor) and scale == 1.0:
        torch.exp(logs, out=out)
    else:
        torch.mul(logs.exp_(), scale, out=out)
    return out.scatter_(1, target, ((of_target.exp() - 1) * scale).to(out.dtype))


def add_gradients(
    grad_logits: Tensor,
    some: slice,
    hidden: Tensor,
    weight: Tensor,
    grad_hidden: Tensor,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None:
    """Add to the gradients of all that made the logits what a block of tokens [b, V] gives."""
    rows = widen(hidden[some])
    if grad_bias is not None:
        grad_bias += grad_logits[:, : len(grad_bias)].sum(0, dtype=torch.float32)
    for block, wide in vocabulary_blocks(weight):
        grad = grad_logits[:, block]
        if wide.dtype == grad_hidden.dtype:
            grad_hidden[some].addmm_(grad, wide)
        else:
            grad_hidden[some] += grad @ wide
        if grad_weight is None:
            continue
        if wide.dtype == grad_weight.dtype:
            grad_weight[block].addmm_(grad.T, rows)  # rounded once, with the sum so far
        else:
            grad_weight[block] += grad.T @ rows


def token_blocks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Equal parts of the n tokens, whose logits take at most BLOCK_BYTES in fp32."""
    count = len(hidden)
    most = max(1, BLOCK_BYTES[hidden.device.type] // (4 * len(weight)))
    size = -(-count // max(1, -(-count // most)))
    for begin in range(0, count, max(1, size)):
        yield slice(begin, min(begin + size, count))


def filled_up(weight: Tensor) -> Tensor:
    """The head's weight [V, d] with rows of zeros up to what ALIGNED asks for."""
    missing = -len(weight) % ALIGNED[weight.device.type]
    return F.pad(weight, (0, 0, 0, missing)) if missing else weight


def head_logits(hidden: Tensor, head: Tensor, bias: Tensor | None, num_tokens: int) -> Tensor:
    """Logits [b, V], in the type that products are computed in; head: filled up to V rows.

    Beyond the tokens that there are, -inf: probability and gradient are 0 there.
    """
    rows = widen(hidden)
    logits = rows.new_empty(len(rows), len(head))
    for block, wide in vocabulary_blocks(head):
        torch.mm(rows, wide.T, out=logits[:, block])
    logits[:, num_tokens:] = float("-inf")
    if bias is not None:
        logits[:, :num_tokens] += bias
    return logits


def vocabulary_blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The weight [V, d] as products take it: whole, or a part after the other where it is widened,
    so that never all of it is there twice."""
    if widen(weight[:1]).dtype == weight.dtype:
        yield slice(None), weight
        return
    for begin in range(0, len(weight), WIDENED_ROWS):
        block = slice(begin, begin + WIDENED_ROWS)
        yield block, widen(weight[block])
