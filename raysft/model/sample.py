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
# Rows that have ended are written on, unread, until so few are left: leaving them out copies the
# keys and values of all others.
STILL_GOING = 0.9


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


class Page:
    """N answers of at most T tokens as they are written, place by place."""

    def __init__(self, count: int, most: int, device: torch.device) -> None:
        self.ids = torch.zeros(count, most, dtype=torch.int64, device=device)
        self.numbers = torch.zeros(2, count, most, device=device)  # logs, entropies
        self.lengths = torch.full((count,), most, device=device)
        self.ended = torch.zeros(count, dtype=torch.bool, device=device)

    def write(self, rows: Tensor, place: int, written: "Place", ends: Tensor) -> None:
        """rows: of the answers. What is written behind an end token is not read."""
        self.ids[rows, place] = written.tokens
        self.numbers[0, rows, place] = written.logs
        self.numbers[1, rows, place] = written.entropies
        end = rows[torch.isin(written.tokens, ends) & ~self.ended[rows]]
        self.lengths[end], self.ended[end] = place + 1, True

    def answers(self) -> list[Written]:
        ids, (logs, entropies) = self.ids.cpu().numpy(), self.numbers.cpu().numpy()
        rows = zip(self.lengths.tolist(), self.ended.tolist(), strict=True)
        return [
            Written(ids[i, :n], ended, logs[i, :n], entropies[i, :n])
            for i, (n, ended) in enumerate(rows)
        ]


@torch.no_grad()
def write(
    model: Any, prompts: Sequence[list[int]], keys: Keys, how: Sampling, ends: Sequence[int]
) -> list[list[Written]]:
    """`how.samples` answers to each of P prompts' token ids.

    keys: uint64 [P, samples], of each answer. ends: ids of which each ends an answer.
    A prompt is read once, with all others, and its keys and values serve all of its answers; rows
    that have ended are left out of what follows. Raises UserError of a model without a cache.
    """
    from raysft.model.roomy_cache import roomy_cache  # transformers takes seconds to import

    inputs = padded(model, prompts)
    longest = inputs["input_ids"].shape[1]
    most = max(1, min(how.max_new_tokens, positions_of(model) - longest))
    cache = roomy_cache(model.config)
    logits = next_logits(model, inputs["input_ids"], inputs["attention_mask"], cache)
    if cache.get_seq_length() != longest:
        raise UserError(f"{type(model).__name__} keeps no keys and values to go on writing from")
    cache.batch_repeat_interleave(how.samples)
    logits = logits.repeat_interleave(how.samples, 0)
    mask = inputs["attention_mask"].repeat_interleave(how.samples, 0)
    flat, device, last = keys.ravel(), logits.device, torch.tensor(list(ends)).to(logits.device)
    page, rows = Page(len(flat), most, device), torch.arange(len(flat), device=device)
    for place in range(most):
        numbers = uniforms(flat[rows.cpu().numpy()], place)
        written = drawn_at(logits / how.temperature, torch.from_numpy(numbers).to(device))
        page.write(rows, place, written, last)
        going, tokens = (~page.ended[rows]).nonzero()[:, 0], written.tokens
        if place + 1 == most or not len(going):
            break
        if len(going) <= STILL_GOING * len(rows):
            rows, tokens, mask = rows[going], tokens[going], mask[going]
            cache.batch_select_indices(going)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = next_logits(model, tokens[:, None], mask, cache)
    answers = page.answers()
    return [answers[i : i + how.samples] for i in range(0, len(answers), how.samples)]


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


class Place(NamedTuple):
    """One token of each of B answers."""

    tokens: Tensor  # int64 [B]
    logs: Tensor  # fp32 [B], their log P, nats
    entropies: Tensor  # fp32 [B], of the distributions that they were drawn from, nats


def drawn_at(logits: Tensor, numbers: Tensor) -> Place:
    """logits: [B, V], at the temperature. numbers: fp64 [B] in [0, 1), which decide."""
    logs = logits.float().log_softmax(-1)
    probabilities = logs.exp()
    tokens = inverse(probabilities, numbers)
    return Place(tokens, logs.gather(1, tokens[:, None])[:, 0], entropy(logs, probabilities))


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
