"""Models with a head of one number in place of the vocabulary: a reward for what was read so far.

The reward of a text is the head's output at its last token, which is found by lengths. As
transformers does in its AutoModelForSequenceClassification, as which such a model is exported;
there the last token is found by the padding, so that it needs a token of its own.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from raysft.errors import UserError
from raysft.model.initialise import whole_on_cpu

HEAD = "score"  # its name in transformers
PAD_TOKEN = "<|padding|>"  # given to a tokenizer that has none of its own


def is_scalar(model: Any) -> bool:
    """model: a Hugging Face one, or an engine with one."""
    return isinstance(getattr(getattr(model, "module", model), HEAD, None), nn.Module)


def require_causal(hf_config: Any, path: str) -> None:
    """Raises UserError for a reward model where one is asked for that writes."""
    if any("SequenceClassification" in name for name in hf_config.architectures or ()):
        raise UserError(f"{path} is a reward model, which scores answers and writes none")


def add_pad_token(tokenizer: Any) -> int:
    """Give it a padding token that nothing else uses; returns how many tokens were added."""
    used = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    if tokenizer.pad_token is not None and tokenizer.pad_token not in used:
        return 0
    return int(tokenizer.add_special_tokens({"pad_token": PAD_TOKEN}))


def make_scalar(hf_config: Any, tokenizer: Any) -> None:
    """The config of a causal model becomes that of one with a scalar head."""
    hf_config.num_labels = 1
    hf_config.pad_token_id = int(tokenizer.pad_token_id)


def prepare_scalar(model: Any, seed: int, *, draws_head: bool) -> None:
    """Let the model give rewards at the tokens that its caller names. Every rank must call it.

    draws_head: of a model that had none: from N(0, 1 / (d + 1)) (Stiennon et al. 2020, appendix B),
    by the seed alone. Raises UserError where the model has no head of this kind.
    """
    head = getattr(model, HEAD, None)
    if not isinstance(head, nn.Linear):
        raise UserError(f"{type(model).__name__} has no linear head {HEAD!r}: take another model")
    if draws_head:
        draw_head(head, seed)
    model.forward = MethodType(rewards_at, model)


@torch.no_grad()
def draw_head(head: nn.Linear, seed: int) -> None:
    with whole_on_cpu(list(head.parameters())):
        for parameter in head.parameters():
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(parameter.shape, generator=generator)
            is_bias = parameter.ndim == 1
            parameter.data.copy_(0 * drawn if is_bias else drawn / (head.in_features + 1) ** 0.5)


def rewards_at(model: Any, input_ids: Tensor, tokens: Tensor, **inputs: Any) -> Tensor:
    """Rewards fp32 [k] at k tokens, given by their places in the flattened rows [B, T]."""
    base = getattr(model, model.base_model_prefix)
    hidden = base(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
    rows = hidden.flatten(0, -2).index_select(0, tokens)
    rewards: Tensor = model.get_submodule(HEAD)(rows)[:, 0].float()
    return rewards
