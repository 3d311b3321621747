"""How densely records can be packed."""

import numpy as np
from numpy.typing import NDArray


def packed_bins(lengths: NDArray[np.int64], capacity: int) -> int:
    """Bins of `capacity` tokens that best-fit decreasing needs for these lengths.

    Counts records and bins of equal size together, so a million records take milliseconds.
    """
    counts = np.bincount(lengths, minlength=capacity + 1)
    room = np.zeros(capacity + 1, dtype=np.int64)  # room[r]: bins with r tokens left
    bins = 0
    for length in range(capacity, 0, -1):
        left = int(counts[length])
        while left:
            fitting = np.flatnonzero(room[length:])
            if len(fitting):
                space = length + int(fitting[0])
                taken = min(left, int(room[space]))
            else:  # new bins, each filled with as many of this length as it takes
                each = capacity // length
                full, rest = divmod(left, each)
                bins += full + bool(rest)
                room[capacity - each * length] += full
                room[capacity - rest * length] += bool(rest)
                break
            room[space] -= taken
            room[space - length] += taken
            left -= taken
    return bins
