"""Segments to token ids and a loss mask: the only place that masks."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysft.data.template import Segment
from raysft.errors import UserError


class Example(NamedTuple):
    input_ids: NDArray[np.int32]  # [T]
    loss_mask: NDArray[np.bool_]  # [T], true at the tokens whose prediction is trained
    prompt_cut: int  # prompt tokens that did not fit
    response_cut: int  # response tokens (end token included) that did not fit


def encode(
    tokenizer: Any,
    conversations: Sequence[Sequence[Segment]],
    *,
    seq_len: int,
    mask_prompt: bool = True,
) -> Iterator[Example]:
    """Encode every segment apart, so that no token spans the border of prompt and response.

    A supervised segment is followed by one supervised end token. A conversation longer than
    `seq_len` loses first the start of its prompt, then the end of its response. Text that spells
    a special token stays text.
    """
    texts = [segment.text for conversation in conversations for segment in conversation]
    encoded = iter(encode_text(tokenizer, texts))
    start = leading_ids(tokenizer)
    end = end_token_id(tokenizer)
    for conversation in conversations:
        ids, mask = list(start), [False] * len(start)
        for segment in conversation:
            piece = [*next(encoded), end] if segment.supervised else next(encoded)
            ids += piece
            mask += [segment.supervised] * len(piece)
        yield fit(ids, mask, seq_len=seq_len, mask_prompt=mask_prompt)


def fit(ids: list[int], mask: list[bool], *, seq_len: int, mask_prompt: bool) -> Example:
    """Cut to `seq_len`: the oldest prompt tokens go first, one stays to predict the response."""
    excess = max(0, len(ids) - seq_len)
    prompt_len = mask.index(True) if True in mask else len(mask)
    prompt_cut = min(excess, max(0, prompt_len - 1))
    response_cut = excess - prompt_cut
    kept = slice(prompt_cut, len(ids) - response_cut)
    loss_mask = np.asarray(mask[kept], dtype=np.bool_)
    if not mask_prompt:
        loss_mask = np.ones_like(loss_mask)
    return Example(np.asarray(ids[kept], dtype=np.int32), loss_mask, prompt_cut, response_cut)


def encode_prompt(tokenizer: Any, segments: Sequence[Segment]) -> list[int]:
    """Token ids [T] to generate from, equal to the prompt tokens of `encode`."""
    texts = [segment.text for segment in segments]
    pieces = encode_text(tokenizer, texts)
    return leading_ids(tokenizer) + [token for piece in pieces for token in piece]


def encode_text(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
    )["input_ids"]
    return ids


def leading_ids(tokenizer: Any) -> list[int]:
    """[BOS] for tokenizers that start every text with it, as Llama's does; GPT-2's does not."""
    ids = tokenizer("a")["input_ids"]
    has_bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return ids[:1] if has_bos else []


def end_token_id(tokenizer: Any) -> int:
    """Raises UserError when the tokenizer has no end token: the model could never learn to stop."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.tokenizer: {tokenizer.name_or_path} has no end token (eos_token), which every "
            "response must end with. Set eos_token in its tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)
