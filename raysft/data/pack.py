"""Records into packs of a bounded number of tokens, the same number of packs for every rank."""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
# The record length at which attention costs about as much as all linear layers together, for a
# hidden size of 768: 12 x 768. Only the balance between ranks depends on it.
ATTENTION_LENGTH = 9216


def pack_for_ranks(lengths: Indices, capacity: int, world_size: int) -> list[list[list[int]]]:
    """Positions in `lengths`, as [micro-step][rank][records of a pack].

    As many micro-steps as first-fit decreasing needs for packs of `capacity` tokens, then every
    record, longest first, into the pack with the least work that has room. So ranks have the same
    number of packs and nearly the same work, and packs of one micro-step are alike. A pack may be
    empty where there are fewer records than packs. Depends on its arguments only.
    """
    order = np.argsort(-lengths, kind="stable")
    work = lengths * (1 + lengths / ATTENTION_LENGTH)
    micro_steps = -(-first_fit_decreasing(lengths[order], capacity) // world_size)
    while True:
        packs = spread(order, lengths, work, capacity, micro_steps * world_size)
        if packs is not None:
            break
        micro_steps += 1
    packs.sort(key=lambda pack: -sum(work[pack]))
    return [packs[begin : begin + world_size] for begin in range(0, len(packs), world_size)]


def first_fit_decreasing(lengths: Indices, capacity: int) -> int:
    """Packs needed for lengths that come longest first."""
    room: list[int] = []
    for length in lengths.tolist():
        for index, left in enumerate(room):
            if left >= length:
                room[index] = left - length
                break
        else:
            room.append(capacity - length)
    return len(room)


def spread(
    order: Indices, lengths: Indices, work: NDArray[np.float64], capacity: int, count: int
) -> list[list[int]] | None:
    """`count` packs of like work, or None where a record finds no room."""
    packs: list[list[int]] = [[] for _ in range(count)]
    room = np.full(count, capacity)
    load = np.zeros(count)
    for record in order.tolist():
        fitting = np.where(room >= lengths[record], load, np.inf)
        index = int(fitting.argmin())
        if np.isinf(fitting[index]):
            return None
        packs[index].append(record)
        room[index] -= lengths[record]
        load[index] += work[record]
    return packs


def packed_bins(lengths: Indices, capacity: int) -> int:
    """Packs that best-fit decreasing needs for a whole set."""
    return bins_for(np.bincount(lengths, minlength=capacity + 1), capacity)


def bins_for(counts: Indices, capacity: int) -> int:
    """As `packed_bins`, of `counts[n]` records of n tokens, 0 to `capacity`.

    Takes records and packs of equal size together, so a million records take milliseconds.
    """
    room = np.zeros(capacity + 1, dtype=np.int64)  # room[r]: packs with r tokens left
    packs = 0
    for length in range(capacity, 0, -1):
        left = int(counts[length])
        while left:
            fitting = np.flatnonzero(room[length:])
            if len(fitting):
                space = length + int(fitting[0])
                taken = min(left, int(room[space]))
            else:  # new packs, each filled with as many of this length as it takes
                each = capacity // length
                full, rest = divmod(left, each)
                packs += full + bool(rest)
                room[capacity - each * length] += full
                room[capacity - rest * length] += bool(rest)
                break
            room[space] -= taken
            room[space - length] += taken
            left -= taken
    return packs
