"""Masked negative log-likelihood: the only place that shifts labels.

Position t predicts token t + 1, so the logits of positions 0..T-2 meet the tokens 1..T-1.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from raysft.data.batch import Batch


def supervised_nll(model: Any, batch: Batch) -> Tensor:
    """Sum of -log P(x_t given x_<t) over the supervised tokens of the batch, in nats, fp32 [].

    Not yet a mean: the caller divides by the supervised tokens of the whole optimizer step.
    """
    return token_nll(model, batch, keep=batch.loss_mask[:, 1:]).sum()


def token_nll(model: Any, batch: Batch, keep: Tensor) -> Tensor:
    """-log P of the n kept target tokens, in nats, fp32 [n].

    keep: bool [B, T-1], which of the tokens 1..T-1 to score. The LM head sees only the positions
    that predict them, so no [B, T, V] logits exist.
    """

    def keep_positions(_module: Any, _args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, :-1][keep].unsqueeze(0)
        return output

    # A hook on the decoder rather than our own call of the head: what a model does to its logits
    # (scaling, soft caps) stays in force. First in line, before ZeRO-3 looks at the output.
    decoder = getattr(model, "module", model).base_model
    hook = decoder.register_forward_hook(keep_positions, prepend=True)
    try:
        output = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
    finally:
        hook.remove()
    targets = batch.input_ids[:, 1:][keep]
    return F.cross_entropy(output.logits[0].float(), targets, reduction="none")
