"""Records to the tensors of a micro-batch, packed or padded, and the share of one rank."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysft.data.dataset import Indices, TokenDataset
from raysft.data.pack import pack_for_ranks


class Pairs(NamedTuple):
    """Which tokens of a batch are of which half of its P pairs: halves 2i and 2i + 1 are the chosen
    and the rejected conversation of pair i."""

    half: Tensor  # int64 [n], of each supervised token
    ends: Tensor  # int64 [2P], the last token of each half
    numbers: Tensor  # int64 [P], of each pair in its set
    margins: Tensor  # fp32 [P], by how much the chosen answer is better
    reference: Tensor  # fp32 [P, 2], log-probability of both answers by the reference, or empty


class Drawn(NamedTuple):
    """Of each of the n supervised tokens of answers that a model drew itself."""

    places: Tensor  # int64 [n], of the token in the flat arrays of its set
    share: Tensor  # fp32 [n], 1 over the tokens of its answer
    # Empty until they are known:
    old: Tensor  # fp32 [n], log-probability by the model that the token was drawn from
    advantages: Tensor  # fp32 [n]
    returns: Tensor  # fp32 [n], what a critic should have expected


class Batch(NamedTuple):
    """One forward pass: B rows of T tokens. A pack is one row of whole records, end to end."""

    input_ids: Tensor  # int64 [B, T]
    scored: Tensor  # int64 [m], the tokens that one before them in their record predicts
    supervised: Tensor  # int64 [n], those of them whose prediction is trained
    in_answer: Tensor  # bool [m], which of `scored` are tokens of a trained answer
    weights: Tensor | None  # fp32 [n], of `supervised` in the loss; None where all are 1
    inputs: dict[str, Any]  # what else the model's forward takes
    pairs: Pairs | None = None  # where the records are pairs
    drawn: Drawn | None = None  # where they are a model's own answers

    def to(self, device: torch.device) -> "Batch":
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """In memory from which a GPU copies while it computes."""
        return self.map(Tensor.pin_memory)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        inputs = {name: changed(value) for name, value in self.inputs.items()}
        pairs = None if self.pairs is None else Pairs(*map(change, self.pairs))
        drawn = None if self.drawn is None else Drawn(*map(change, self.drawn))
        return Batch(*map(changed, self[:-3]), inputs, pairs, drawn)  # type: ignore[call-arg]


def make_batch(
    input_ids: NDArray[np.int64],
    scored: NDArray[np.bool_],
    loss_mask: NDArray[np.bool_],
    inputs: dict[str, Any],
    prompt_weight: float = 0.0,
) -> Batch:
    """From arrays [B, T]. Tokens are named by their place in the flattened rows: an index, unlike
    a mask, lets a GPU go on without being asked how many there are.

    loss_mask: true in trained answers, whose tokens weigh 1; the others weigh `prompt_weight`.
    """
    answers = loss_mask & scored
    supervised = scored if prompt_weight else answers
    weights = np.where(answers, 1.0, prompt_weight)[supervised].astype(np.float32)
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(np.flatnonzero(scored)),
        torch.from_numpy(np.flatnonzero(supervised)),
        torch.from_numpy(answers[scored]),
        torch.from_numpy(weights) if 0 < prompt_weight < 1 else None,
        inputs,
    )


FILLER = -1  # index of a record of one token: it predicts nothing and evens out the ranks


class Part(NamedTuple):
    """What attends to itself alone: a record, half of a pair, or a filler."""

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]


def parts_of(dataset: TokenDataset, index: int) -> list[Part]:
    """One, or the two of a pair."""
    if index == FILLER:
        return [Part(np.zeros(1, np.int32), np.zeros(1, np.bool_))]
    ids, mask = dataset.tokens(index), dataset.mask(index)
    if dataset.chosen is None:
        return [Part(ids, mask)]
    border = int(dataset.chosen[index])
    return [Part(ids[:border], mask[:border]), Part(ids[border:], mask[border:])]


def pack(dataset: TokenDataset, indices: Indices) -> Batch:
    """Records end to end in one row: positions restart, and attention is told their lengths.

    As `record_lengths` for raysft's attention, under transformers' names for flash attention.
    """
    parts = [part for index in indices for part in parts_of(dataset, index)]
    lengths = [len(part.input_ids) for part in parts]
    borders = np.cumsum([0, *lengths], dtype=np.int32)
    positions = np.concatenate([np.arange(length) for length in lengths])
    ids = np.concatenate([part.input_ids for part in parts]).astype(np.int64)
    mask = np.concatenate([part.loss_mask for part in parts])
    scored = positions > 0  # what precedes a record's first token is another record
    cu_seq_lens, longest = torch.from_numpy(borders), max(lengths)
    inputs = {
        "position_ids": torch.from_numpy(positions)[None],
        "record_lengths": lengths,
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    batch = make_batch(ids[None], scored[None], mask[None], inputs, dataset.prompt_weight)
    return with_more(batch, dataset, indices, borders[:-1].astype(np.int64), np.array(lengths))


def pad(dataset: TokenDataset, indices: Indices) -> Batch:
    """A row a record or half of a pair, padded on the right to the longest. Padding is told by
    lengths, not by id."""
    parts = [part for index in indices for part in parts_of(dataset, index)]
    lengths = np.array([len(part.input_ids) for part in parts])
    shape = (len(parts), int(lengths.max()))
    input_ids = np.zeros(shape, dtype=np.int64)
    loss_mask = np.zeros(shape, dtype=np.bool_)
    for row, (ids, mask) in enumerate(parts):
        input_ids[row, : len(ids)] = ids
        loss_mask[row, : len(ids)] = mask
    attention_mask = np.arange(shape[1]) < lengths[:, None]
    scored = attention_mask.copy()
    scored[:, 0] = False
    inputs = {"attention_mask": torch.from_numpy(attention_mask)}
    batch = make_batch(input_ids, scored, loss_mask, inputs, dataset.prompt_weight)
    return with_more(batch, dataset, indices, np.arange(shape[0]) * shape[1], lengths)


def with_more(
    batch: Batch, dataset: TokenDataset, indices: Indices, begins: Indices, lengths: Indices
) -> Batch:
    """What an objective wants to know of records of this kind. begins, lengths: of the parts, in
    the flattened rows."""
    if dataset.chosen is not None:
        return with_pairs(batch, dataset, indices, begins, lengths)
    return with_places(batch, dataset, indices, begins) if dataset.drawn else batch


def with_places(batch: Batch, dataset: TokenDataset, indices: Indices, begins: Indices) -> Batch:
    supervised = batch.supervised.numpy()
    part = np.searchsorted(begins, supervised, side="right") - 1
    numbers = indices[part]  # no filler: nothing is supervised in it
    places = dataset.starts[numbers] + supervised - begins[part]
    share = torch.from_numpy((1 / dataset.answers[numbers]).astype(np.float32))
    nothing = torch.zeros(0)
    found = Drawn(torch.from_numpy(places), share, nothing, nothing, nothing)
    return batch._replace(drawn=found)


def with_pairs(
    batch: Batch, dataset: TokenDataset, indices: Indices, begins: Indices, lengths: Indices
) -> Batch:
    """Fillers are no pair's."""
    numbers = indices[indices != FILLER]
    is_half = np.repeat(indices != FILLER, np.where(indices == FILLER, 1, 2))  # [parts]
    half_of_part = np.cumsum(is_half) - 1
    part_of_token = np.searchsorted(begins, batch.supervised.numpy(), side="right") - 1
    reference = np.zeros((0, 2)) if dataset.reference is None else dataset.reference[numbers]
    margins = np.zeros(0) if dataset.margins is None else dataset.margins[numbers]
    found = Pairs(
        half=torch.from_numpy(half_of_part[part_of_token]),
        ends=torch.from_numpy((begins + lengths - 1)[is_half]),
        numbers=torch.from_numpy(numbers),
        margins=torch.from_numpy(margins.astype(np.float32)),
        reference=torch.from_numpy(reference.astype(np.float32)),
    )
    return batch._replace(pairs=found)


def packed_batches(
    dataset: TokenDataset, indices: Indices, *, rank: int, world_size: int, capacity: int
) -> list[Batch]:
    """The packs of one rank, of at most `capacity` tokens; every rank gets the same number."""
    steps = pack_for_ranks(dataset.lengths[indices], capacity, world_size)
    mine = [indices[packs[rank]] if packs[rank] else np.array([FILLER]) for packs in steps]
    return [pack(dataset, records) for records in mine]


def padded_batches(
    dataset: TokenDataset, indices: Indices, *, rank: int, world_size: int, micro_batch_size: int
) -> list[Batch]:
    """The padded micro-batches of one rank; every rank gets the same number, with fillers if need
    be.

    Records of like length share a micro-step, within a rank to save padding and over ranks so
    that none waits; which rank computes a record changes nothing in the summed loss.
    """
    by_length = indices[np.argsort(-dataset.lengths[indices], kind="stable")]
    fillers = np.full(-len(indices) % world_size, FILLER, dtype=np.int64)
    by_length = np.concatenate([by_length, fillers])
    together = world_size * micro_batch_size
    return [
        pad(dataset, by_length[begin : begin + together][rank::world_size])
        for begin in range(0, len(by_length), together)
    ]
