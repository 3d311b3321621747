"""Answers drawn from a model's own distribution, at a temperature; nothing is cut off it.

Each token is drawn by a number that is made of its key alone: which prompt, which answer to it,
which place in the answer. So answers do not depend on how prompts are spread over workers.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raysft.data.template import Template
from raysft.errors import UserError
from raysft.model.generate import padded, positions_of

Keys = NDArray[np.uint64]
BLOCK = 256  # tokens of a vocabulary that are looked through together


class Sampling(NamedTuple):
    samples: int  # answers to a prompt
    temperature: float
    max_new_tokens: int


class Written(NamedTuple):
    """An answer of n tokens, its end token included."""

    ids: NDArray[np.int64]  # [n]
    ended: bool  # false: max_new_tokens were not enough
    logs: NDArray[np.float32]  # [n], log P of each token at the temperature, nats
    entropies: NDArray[np.float32]  # [n], of the distributions that they were drawn from, nats


class Drawn(NamedTuple):
    text: str  # without the end token
    ended: bool


def keys_of(*parts: Any) -> Keys:
    """Mixed of whole numbers, or arrays of them that are broadcast against each other."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mixed(state ^ np.asarray(part, np.uint64))
    return state


def uniforms(keys: Keys, place: int) -> NDArray[np.float64]:
    """One number in [0, 1) for each key, of 53 bits; another one at each place."""
    return (keys_of(keys, place) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mixed(z: Keys) -> Keys:
    """SplitMix64 (Steele et al. 2014): changes every bit for every bit that changes."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@torch.no_grad()
def write(
    model: Any, prompts: Sequence[list[int]], keys: Keys, how: Sampling, ends: Sequence[int]
) -> list[list[Written]]:
    """`how.samples` answers to each of P prompts' token ids.

    keys: uint64 [P, samples], of each answer. ends: ids of which each ends an answer.
    A prompt is read once, with all others, and its keys and values serve all of its answers; rows
    that have ended are left out of what follows. Raises UserError of a model without a cache.
    """
    from transformers import DynamicCache

    inputs = padded(model, prompts)
    longest = inputs["input_ids"].shape[1]
    most = max(1, min(how.max_new_tokens, positions_of(model) - longest))
    cache = DynamicCache(config=model.config)
    logits = next_logits(model, inputs["input_ids"], inputs["attention_mask"], cache)
    if cache.get_seq_length() != longest:
        raise UserError(f"{type(model).__name__} keeps no keys and values to go on writing from")
    cache.batch_repeat_interleave(how.samples)
    logits = logits.repeat_interleave(how.samples, 0)
    mask = inputs["attention_mask"].repeat_interleave(how.samples, 0)
    flat = keys.ravel()
    count, device = len(flat), logits.device
    ids = torch.zeros(count, most, dtype=torch.int64, device=device)
    numbers = torch.zeros(2, count, most, device=device)  # logs, entropies
    lengths = torch.full((count,), most, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    last = torch.tensor(list(ends), device=device)
    rows = torch.arange(count, device=device)  # those still written
    for place in range(most):
        logs = (logits.float() / how.temperature).log_softmax(-1)
        drawn = torch.from_numpy(uniforms(flat[rows.cpu().numpy()], place)).to(device)
        probabilities = logs.exp()
        tokens = inverse(probabilities, drawn)
        ids[rows, place] = tokens
        numbers[0, rows, place] = logs.gather(1, tokens[:, None])[:, 0]
        numbers[1, rows, place] = entropy(logs, probabilities)
        ends_here = torch.isin(tokens, last)
        lengths[rows[ends_here]] = place + 1
        ended[rows[ends_here]] = True
        going = (~ends_here).nonzero()[:, 0]
        if place + 1 == most or not len(going):
            break
        if len(going) < len(rows):
            rows, tokens, mask = rows[going], tokens[going], mask[going]
            cache.batch_select_indices(going)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = next_logits(model, tokens[:, None], mask, cache)
    table = ids.cpu().numpy(), *numbers.cpu().numpy()
    answers = [
        Written(table[0][i, :n], bool(end), table[1][i, :n], table[2][i, :n])
        for i, (n, end) in enumerate(zip(lengths.tolist(), ended.tolist(), strict=True))
    ]
    return [answers[begin : begin + how.samples] for begin in range(0, count, how.samples)]


def next_logits(model: Any, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """Logits [B, V] after the tokens ids [B, t], which follow those in the cache.

    mask: [B, T] of all tokens so far, 0 in the padding on the left. A row's positions count from
    its first token.
    """
    taken = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"attention_mask": mask, "past_key_values": cache, "use_cache": True}
    if "position_ids" in taken:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if "logits_to_keep" in taken:
        inputs["logits_to_keep"] = 1
    logits: Tensor = model(input_ids=ids, **inputs).logits[:, -1]
    return logits


def inverse(probabilities: Tensor, drawn: Tensor) -> Tensor:
    """The token [B] at which the distribution function of each row [B, V] passes its number, which
    is a share of the row's sum.

    First the block of tokens is found and then the token in it: sums in fp64 over all of a large
    vocabulary would take as long as the model does.
    """
    padded_rows = F.pad(probabilities, (0, -probabilities.shape[1] % BLOCK))
    blocks = padded_rows.view(len(probabilities), -1, BLOCK)
    sums = blocks.sum(-1).double()
    total = sums.cumsum(-1)
    wanted = drawn[:, None] * total[:, -1:]
    block = torch.searchsorted(total, wanted, right=True).clamp(max=sums.shape[1] - 1)
    before = total.gather(1, block) - sums.gather(1, block)
    inside = blocks[torch.arange(len(blocks), device=block.device), block[:, 0]].double()
    place = torch.searchsorted(inside.cumsum(-1), wanted - before, right=True)
    # Where rounding takes it past the end: the last token that can be drawn, and not padding.
    last = (inside > 0).int().cumsum(-1).argmax(-1, keepdim=True)
    return (block * BLOCK + torch.minimum(place, last))[:, 0]


def entropy(logs: Tensor, probabilities: Tensor) -> Tensor:
    """[B], nats. What cannot be drawn adds nothing."""
    return -(probabilities * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(-1)


def words(template: Template, written: Written) -> Drawn:
    ids = written.ids[:-1] if written.ended else written.ids
    text = str(template.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
    return Drawn(text, written.ended)


def draw(
    model: Any,
    template: Template,
    prompts: Sequence[list[int]],
    how: Sampling,
    seed: int,
    first: int,
) -> list[list[Drawn]]:
    """As `write`, in words. first: the number of the first of these prompts among all."""
    numbers = first + np.arange(len(prompts))
    keys = keys_of(seed, numbers[:, None], np.arange(how.samples))
    written = write(model, prompts, keys, how, template.stop_ids)
    return [[words(template, one) for one in answers] for answers in written]
