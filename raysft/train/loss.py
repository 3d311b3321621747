"""Masked negative log-likelihood: the only place that shifts labels.

Position t predicts token t + 1, so the logits of positions 0..T-2 meet the tokens 1..T-1. Only
positions that predict a token to be scored reach the LM head, and their logits exist for a block
of tokens at a time: the loss never holds batch x length x vocabulary.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raysft.data.batch import Batch
from raysft.errors import UserError
from raysft.train.head_nll import HeadLogProbability, HeadNLL

# hidden [n, d], weight [V, d], bias [V] to what the head gives in place of logits.
Head = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def supervised_nll(model: Any, batch: Batch, gradient_scale: float = 1.0) -> Tensor:
    """Sum of -log P(x_t given x_<t) over the supervised tokens of the batch, each times its weight,
    in nats, fp32 [].

    Not yet a mean: the caller divides by the weights of the whole optimizer step, which are as many
    as its supervised tokens where each weighs 1.

    gradient_scale: about what the sum will be multiplied by before its backward. It changes no
    gradient, but is there from the start, so that in fp16 none is too small or too large.
    """
    if not has_plain_head(model):
        of_tokens = token_nll(model, batch, batch.supervised)
        return (of_tokens if batch.weights is None else of_tokens * batch.weights).sum()
    targets = batch.input_ids.flatten().index_select(0, batch.supervised)

    def nll(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = HeadNLL.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, targets, gradient_scale, batch.weights
        )
        return result

    return forward_at(model, batch, batch.supervised, nll)


def token_log_probability(
    model: Any,
    batch: Batch,
    tokens: Tensor,
    temperature: float = 1.0,
    beside: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """log P(x_t given x_<t) of n tokens, in nats, fp32 [n], with a gradient where one is asked for.

    tokens: int64 [n], places in the flattened rows. Its logits too are there for a block of tokens
    at a time, in the forward and in the backward pass. temperature: what they are divided by.
    beside: gets the hidden states [n, d] that predict these tokens.
    """
    targets = batch.input_ids.flatten().index_select(0, tokens)
    if not has_plain_head(model):
        logits = forward_at(model, batch, tokens, None, beside)[0].float() / temperature
        return -F.cross_entropy(logits, targets, reduction="none")

    def logs(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if temperature != 1:  # of the logits, which are linear in both
            hidden, bias = hidden / temperature, None if bias is None else bias / temperature
        result: Tensor = HeadLogProbability.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, targets
        )
        return result

    return forward_at(model, batch, tokens, logs, beside)


def token_nll(model: Any, batch: Batch, tokens: Tensor) -> Tensor:
    """-log P of n tokens, in nats, fp32 [n]; see `token_log_probability`."""
    return -token_log_probability(model, batch, tokens)


def forward_at(
    model: Any,
    batch: Batch,
    tokens: Tensor,
    compute: Head | None,
    beside: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """What the model makes of its head at the n positions that predict these tokens: of its logits
    [1, n, V], or of what `compute` gives in their place. beside: gets what the head gets, [n, d].

    Within the head's own forward: ZeRO-3 gathers the weight for it, every rank runs the same
    modules whatever the number of blocks, and what a model does before and after it stays in force.

    Raises UserError where the model does not call its head.
    """
    head = head_of(model)
    before, positions = head.forward, tokens - 1
    called = False

    def at_positions(hidden: Tensor) -> Tensor:
        nonlocal called
        called = True
        rows = hidden.flatten(0, -2).index_select(0, positions)
        if beside is not None:
            beside(rows)
        if compute is None:
            return before(rows.unsqueeze(0))  # type: ignore[no-any-return]
        return compute(rows, head.weight, head.bias)

    head.forward = at_positions
    try:
        output: Tensor = model(input_ids=batch.input_ids, use_cache=False, **batch.inputs).logits
    finally:
        head.forward = before
    if not called:
        raise UserError(
            f"{type(inner(model)).__name__} does not compute its logits by its output embeddings: "
            "raysft cannot train it"
        )
    return output


def inner(model: Any) -> Any:
    """The Hugging Face model in an engine, or itself."""
    return getattr(model, "module", model)


def head_of(model: Any) -> Any:
    """Raises UserError where there is none."""
    head = inner(model).get_output_embeddings()
    if head is None:
        raise UserError(f"{type(inner(model)).__name__} has no language-model head")
    return head


_plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def has_plain_head(model: Any) -> bool:
    """Whether the logits are the linear head's output and nothing is done to them after it.

    Tried once, with one token: whatever the head gives must come back as it is. Every rank must
    call it, before its first batch.
    """
    module = inner(model)
    if module not in _plain:
        _plain[module] = isinstance(head_of(model), nn.Linear) and gives_what_its_head_gives(model)
    return _plain[module]


@torch.no_grad()
def gives_what_its_head_gives(model: Any) -> bool:
    module, head = inner(model), head_of(model)
    given = list[tuple[Tensor, Tensor]]()  # what the head gave, and a copy of it
    before, was_training = head.forward, module.training
    module.eval()  # dropout would draw numbers, which a run that goes on does not

    def watched(hidden: Tensor) -> Tensor:
        output: Tensor = before(hidden)
        given.append((output, output.clone()))
        return output

    head.forward = watched
    try:
        ids = torch.zeros(1, 1, dtype=torch.int64, device=head.weight.device)
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        head.forward = before
        module.train(was_training)
    # The same memory, and not the same tensor: ZeRO-3 hands on what it watches as a view. Equal
    # values do not do, for a soft cap changes small logits by less than a rounding.
    return any(
        logits.data_ptr() == output.data_ptr() and torch.equal(logits, copy)
        for output, copy in given
    )
