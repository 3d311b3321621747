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
from raysft.train.head_nll import HeadNLL, log_probabilities, token_blocks

# What some models do to their logits after the head; the chunks would not see it.
AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_soft_cap")


def supervised_nll(model: Any, batch: Batch, gradient_scale: float = 1.0) -> Tensor:
    """Sum of -log P(x_t given x_<t) over the supervised tokens of the batch, in nats, fp32 [].

    Not yet a mean: the caller divides by the supervised tokens of the whole optimizer step.

    gradient_scale: about what the sum will be multiplied by before its backward. It changes no
    gradient, but is there from the start, so that in fp16 none is too small or too large.
    """
    targets = batch.input_ids.flatten().index_select(0, batch.supervised)
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
    targets = batch.input_ids.flatten().index_select(0, tokens)
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


def forward_at(model: Any, batch: Batch, tokens: Tensor) -> Tensor:
    """The output of the model's head at the positions that predict these tokens."""
    positions = tokens - 1

    def keep_positions(_module: Any, _args: Any, output: Any) -> Any:
        rows = output.last_hidden_state.flatten(0, 1).index_select(0, positions)
        output.last_hidden_state = rows.unsqueeze(0)
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
