"""Answers drawn from a model, equal for equal seeds however the prompts are spread over workers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from raysft.data.template import Template


class Drawn(NamedTuple):
    text: str  # without the end token
    ended: bool  # false: max_new_tokens were not enough


class Sampling(NamedTuple):
    samples: int  # answers to a prompt
    temperature: float
    max_new_tokens: int


def draw(
    model: Any, template: Template, prompts: Sequence[list[int]], how: Sampling, seed: Sequence[int]
) -> list[list[Drawn]]:
    """`how.samples` answers to each prompt's token ids, from the model's own distribution at the
    temperature: nothing is cut off it.

    seed: numbers that tell this batch of prompts from all others. The same prompts, seed and number
    of threads give the same answers.
    """
    torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    ends, longest = template.stop_ids, max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    positions = getattr(model.config, "max_position_embeddings", None) or 10**9
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max(1, min(how.max_new_tokens, positions - longest)),
        do_sample=True,
        temperature=how.temperature,
        top_k=0,
        top_p=1.0,
        num_return_sequences=how.samples,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )[:, longest:].tolist()
    answers = [drawn(template.tokenizer, row, ends) for row in output]
    return [answers[begin : begin + how.samples] for begin in range(0, len(answers), how.samples)]


def drawn(tokenizer: Any, ids: list[int], ends: Sequence[int]) -> Drawn:
    place = next((place for place, token in enumerate(ids) if token in ends), None)
    text = str(tokenizer.decode(ids[:place], skip_special_tokens=True))
    return Drawn(text, place is not None)
