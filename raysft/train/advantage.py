"""How much better than expected an answer is, or each of its tokens: pure functions.

What is looked for is the largest E[r(x) - beta log(pi(x) / pi_ref(x))] over answers x drawn from
pi, whose optimum is pi_ref exp(r / beta) / Z. The gradient is E[(r - beta log(pi / pi_ref) - b)
grad log pi(x)] with log pi(x) the sum over the answer's tokens, and any b that does not depend on x
(Williams 1992). Dividing by the answer's length, or by how far the rewards of a group are spread,
makes it the gradient of something else; so does a k3 estimate of the KL divergence in the loss.
"""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
TINY = 1e-8


def leave_one_out(worth: Numbers, size: int) -> Numbers:
    """Advantages [N] of answers that come in groups of `size` to one prompt: each less the mean of
    the others (Ahmadian et al. 2024, equation 8).

    worth: r - beta log(pi / pi_ref) of each answer, [N].
    """
    groups = worth.reshape(-1, size)
    others = (groups.sum(1, keepdims=True) - groups) / (size - 1)
    advantages: Numbers = (groups - others).ravel()
    return advantages


def generalised(
    rewards: Numbers, values: Numbers, lengths: NDArray[np.int64], lam: float
) -> Numbers:
    """Advantages [n] of the tokens of answers that stand end to end (Schulman et al. 2016, equation
    16, undiscounted).

    rewards: [n], what each token brings. values: [n], what is expected from each token on, before
    it is drawn; nothing is expected after the last one. lengths: of the answers; their sum is n.
    """
    advantages = np.zeros_like(values)
    ends = set((np.cumsum(lengths) - 1).tolist())
    expected = following = 0.0
    for place in range(len(values) - 1, -1, -1):
        if place in ends:
            expected = following = 0.0
        following = rewards[place] + expected - values[place] + lam * following
        advantages[place], expected = following, values[place]
    return advantages


def whitened(advantages: Numbers) -> Numbers:
    """With mean 0 and standard deviation 1 over all of them; 0 where there is one alone."""
    centred: Numbers = advantages - advantages.mean()
    scaled: Numbers = centred / (centred.std() + TINY)
    return scaled


def explained_variance(values: Numbers, returns: Numbers) -> float:
    """1 of a critic that knows every return, 0 of one that knows their mean alone."""
    return float(1 - (returns - values).var() / (returns.var() + TINY))


def sums_of(of_tokens: Numbers, lengths: NDArray[np.int64]) -> Numbers:
    """Of each answer [N], of tokens [n] that stand end to end."""
    answer = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(answer, weights=of_tokens, minlength=len(lengths)).astype(np.float64)
