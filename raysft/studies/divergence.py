"""When a training run has failed, by its held-out loss."""

import math

MARGIN = 1.1


def has_diverged(eval_loss: float, first: float, vocabulary: int) -> bool:
    """Whether training has made a model worse than no training and no model.

    eval_loss: held-out loss now; first: before the first step, both in nats a token. ln V is the
    loss of a uniform guess over the vocabulary. The MARGIN leaves room for the noise of a model
    from scratch, which starts at ln V.
    """
    return not math.isfinite(eval_loss) or eval_loss > MARGIN * max(first, math.log(vocabulary))
