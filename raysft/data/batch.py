"""Records to padded batches, and the share of a global batch that one rank computes."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raysft.data.dataset import Indices, TokenDataset


class Batch(NamedTuple):
    """B records padded on the right to the longest, T. Padding is told by lengths, not by id."""

    input_ids: Tensor  # int64 [B, T]
    attention_mask: Tensor  # bool [B, T], false at padding
    loss_mask: Tensor  # bool [B, T], true at the tokens whose prediction is trained

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


FILLER = -1  # index of a record of one token: it predicts nothing and evens out the ranks


def collate(dataset: TokenDataset, indices: Indices) -> Batch:
    lengths = np.where(indices == FILLER, 1, dataset.lengths[indices])
    shape = (len(indices), int(lengths.max()))
    input_ids = np.zeros(shape, dtype=np.int64)
    loss_mask = np.zeros(shape, dtype=np.bool_)
    for row, index in enumerate(indices):
        if index != FILLER:
            input_ids[row, : lengths[row]] = dataset.tokens(index)
            loss_mask[row, : lengths[row]] = dataset.mask(index)
    attention_mask = np.arange(shape[1]) < lengths[:, None]
    return Batch(*map(torch.from_numpy, (input_ids, attention_mask, loss_mask)))


def rank_batches(
    dataset: TokenDataset, indices: Indices, *, rank: int, world_size: int, micro_batch_size: int
) -> list[Batch]:
    """The micro-batches of one rank; every rank gets the same number, with fillers if need be.

    Records of like length share a micro-step, within a rank to save padding and over ranks so
    that none waits; which rank computes a record changes nothing in the summed loss.
    """
    by_length = indices[np.argsort(-dataset.lengths[indices], kind="stable")]
    fillers = np.full(-len(indices) % world_size, FILLER, dtype=np.int64)
    by_length = np.concatenate([by_length, fillers])
    together = world_size * micro_batch_size
    return [
        collate(dataset, by_length[begin : begin + together][rank::world_size])
        for begin in range(0, len(by_length), together)
    ]
