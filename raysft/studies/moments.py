"""What two squared norms tell of the noise in a gradient: plain arithmetic, of one loss."""

from typing import NamedTuple


class Moments(NamedTuple):
    """Of k gradients m_j, each the mean over a shard of b examples.

    With G the mean gradient and Sigma the covariance of an example's about it, both estimates below
    are unbiased: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1
    (arXiv:1812.06162), with batches of b and of k b examples.
    """

    shards: int  # k, at least 2
    shard_size: int  # b
    mean_square: float  # mean over j of |m_j|^2
    square_of_mean: float  # |mean over j of m_j|^2

    @property
    def trace(self) -> float:
        """tr(Sigma): the variance over examples, summed over all parameters. A batch of B has
        tr(Sigma) / B."""
        k = self.shards
        return self.shard_size * k / (k - 1) * (self.mean_square - self.square_of_mean)

    @property
    def square(self) -> float:
        """|G|^2. Not above 0 where noise hides it: then more examples are needed."""
        return self.square_of_mean - self.trace / (self.shards * self.shard_size)

    @property
    def noise_scale(self) -> float:
        """tr(Sigma) / |G|^2, in examples: the batch at which noise and gradient are equally large.
        Of no use where the square is not above 0."""
        return self.trace / self.square
