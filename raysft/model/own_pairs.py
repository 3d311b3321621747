"""Pairs of a model's own answers: the best and the worst of those to one prompt."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raysft.data.record_prompts import Prompt
from raysft.model.rewards import Answered, Reward
from raysft.model.sample import Drawn

UNENDED = "an answer did not end within pairs.max_new_tokens"
ALIKE = "all answers to the prompt are worth the same"


@dataclass
class Tally:
    """Of all answers that were drawn."""

    answers: int = 0
    worth: float = 0.0  # of all together; what has not ended is worth nothing
    left_out: Counter[str] = field(default_factory=Counter)  # by reason


def own_pairs(
    answered: Iterable[tuple[Prompt, list[Drawn]]], reward: Reward, seed: int, tally: Tally
) -> Iterator[dict[str, Any]]:
    """Records of preference pairs, with scores. Which of answers worth the same is taken is drawn
    from the seed and the prompt's number."""
    for number, (prompt, drawn) in enumerate(answered):
        ended = [one.text for one in drawn if one.ended]
        texts = list(dict.fromkeys(ended))
        values = reward([Answered(prompt.turns, text, prompt.reference) for text in texts])
        worth = dict(zip(texts, values, strict=True))
        tally.answers += len(drawn)
        tally.worth += sum(worth[text] for text in ended)
        tally.left_out[UNENDED] += len(drawn) - len(ended)
        if len(set(worth.values())) < 2:
            tally.left_out[ALIKE] += 1
            continue
        order = np.random.default_rng([seed, number]).permutation(len(texts))
        worst, *_, best = sorted((texts[place] for place in order), key=worth.__getitem__)
        yield {
            "prompt": [{"role": turn.role, "content": turn.content} for turn in prompt.turns],
            "chosen": [{"role": "assistant", "content": best}],
            "rejected": [{"role": "assistant", "content": worst}],
            "score_chosen": worth[best],
            "score_rejected": worth[worst],
        }
