"""How much of an answer is copied from its instruction: plain arithmetic on token ids."""

from collections.abc import Sequence

Tokens = Sequence[int]


def longest_common_run(a: Tokens, b: Tokens) -> int:
    """Tokens of the longest stretch that stands in both, by dynamic programming: O(len x len)."""
    best = 0
    before = [0] * (len(b) + 1)
    for token in a:
        now = [0] * (len(b) + 1)
        for place, other in enumerate(b, start=1):
            if token == other:
                now[place] = before[place - 1] + 1
                best = max(best, now[place])
        before = now
    return best


def copied_share(answers: Sequence[Tokens], prompts: Sequence[Tokens]) -> float:
    """The longest run that an answer shares with its prompt, as a share of the answer: the mean
    over all pairs. An answer without tokens has copied nothing."""
    shares = [
        longest_common_run(answer, prompt) / len(answer) if len(answer) else 0.0
        for answer, prompt in zip(answers, prompts, strict=True)
    ]
    return sum(shares) / len(shares)


def copied_by_chance(answers: Sequence[Tokens], prompts: Sequence[Tokens]) -> float:
    """The same with the prompts of others: what answers share with any instruction, such as the
    words of the template and those that are frequent.

    Each is set beside the prompt that is half of the list further, so that none meets its own.
    """
    half = len(prompts) // 2
    return copied_share(answers, [*prompts[half:], *prompts[:half]])
