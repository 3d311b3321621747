"""Sequences of one length: the records joined end to end, or random tokens."""

from typing import Any

import numpy as np

from raysft.data.dataset import TokenDataset, epoch_order


def joined(dataset: TokenDataset, length: int, count: int, seed: int) -> TokenDataset:
    """`count` sequences of `length` tokens: the records end to end, over again if they run out."""
    ids, masks = [], []
    have, epoch = 0, 0
    while have < length * count:
        for index in epoch_order(dataset, seed, epoch):
            ids.append(dataset.tokens(index))
            masks.append(dataset.mask(index))
            have += len(ids[-1])
            if have >= length * count:
                break
        epoch += 1
    shape = (count, length)
    return rows_of(
        np.concatenate(ids)[: length * count].reshape(shape),
        np.concatenate(masks)[: length * count].reshape(shape),
        dataset.prompt_weight,
    )


def synthetic(vocabulary: int, length: int, count: int, seed: int) -> TokenDataset:
    """Random tokens, all of them supervised."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocabulary, (count, length), dtype=np.int32)
    return rows_of(ids, np.ones_like(ids, dtype=np.bool_))


def rows_of(ids: Any, masks: Any, prompt_weight: float = 0.0) -> TokenDataset:
    """A dataset of rows [R, T]."""
    count, length = ids.shape
    return TokenDataset(
        input_ids=ids.astype(np.int32).reshape(-1),
        loss_mask=masks.reshape(-1),
        starts=np.arange(count, dtype=np.int64) * length,
        lengths=np.full(count, length, dtype=np.int64),
        answers=masks[:, 1:].sum(axis=1, dtype=np.int64),  # nothing predicts the first
        source=np.zeros(count, dtype=np.uint16),
        prompt_weight=prompt_weight,
    )
