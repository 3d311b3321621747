"""A language of 2 prompts of which all is known: up to 3 letters and an end, or 259 answers of 6.

The end takes a choice too. After three letters an answer is cut, and has no end.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

LETTERS, LONGEST = 6, 3
PROMPTS = 2


class Language(NamedTuple):
    answers: list[tuple[int, ...]]  # A of them, without their ends
    rows: Tensor  # int64 [A, 3], of which distribution each token of an answer is drawn
    tokens: Tensor  # int64 [A, 3]
    there: Tensor  # fp64 [A, 3], 0 past the end of an answer
    reference: Tensor  # fp64 [2, prefixes, letters + 1], logits of the next token after each prefix
    reward: Tensor  # fp64 [2, A]


def make_language(letters: int = LETTERS) -> Language:
    """The token of the end is the number after the last letter's."""
    answers = [a for n in range(LONGEST + 1) for a in itertools.product(range(letters), repeat=n)]
    number = {prefix: n for n, prefix in enumerate(a for a in answers if len(a) < LONGEST)}
    rows, tokens, there = (torch.zeros(len(answers), LONGEST, dtype=torch.int64) for _ in range(3))
    for i, answer in enumerate(answers):
        for t, token in enumerate([*answer, letters][:LONGEST]):
            rows[i, t], tokens[i, t], there[i, t] = number[answer[:t]], token, 1
    draw = torch.Generator().manual_seed(0)
    reference = torch.randn(PROMPTS, len(number), letters + 1, generator=draw, dtype=torch.float64)
    reward = torch.randn(PROMPTS, len(answers), generator=draw, dtype=torch.float64)
    return Language(answers, rows, tokens, there.double(), reference, reward)


def token_logs(logits: Tensor, language: Language) -> Tensor:
    """log P of each token of every answer, [2, A, 3], by a table of logits; 0 past its end."""
    return logits.log_softmax(-1)[:, language.rows, language.tokens] * language.there


def answer_logs(logits: Tensor, language: Language) -> Tensor:
    """log P of every answer, [2, A]."""
    return token_logs(logits, language).sum(-1)


def total_variation(one: Tensor, other: Tensor) -> float:
    """Of log-probabilities [2, A]: mean over the prompts."""
    return float((one.exp() - other.exp()).abs().sum(-1).mean() / 2)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """KL(one, other), [2], nats."""
    return (one.exp() * (one - other)).sum(-1)


def objective(policy: Tensor, reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """E[r] - beta KL(pi, pi_ref), [2]."""
    return (policy.exp() * reward).sum(-1) - beta * divergence(policy, reference)


def optimum(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """pi_ref exp(r / beta) / Z, as log-probabilities [2, A]."""
    return (reference + reward / beta).log_softmax(-1)
