"""Quantiles of many cells at once, by counting values in buckets that grow with them.

A cell is one field of one sensor in one window. A value falls into the bucket numbered
`ceil(log(|x|) / log(gamma))`, apart by sign; a quantile is the middle of the bucket where the count passes
its rank, so that it is within `ACCURACY` (0.02 %) of the value of that rank, itself the value that
`numpy.quantile(..., method="lower")` gives. Magnitudes below 1e-12 count as 0, above 1e150 as 1e150.
Counts add up, so cells merge exactly, and any cut of the readings gives the same counts.

Memory: 16 bytes a bucket that is used, and a cell uses at most as many as it has values or as its spread
spans (a temperature between 15 and 25 °C: 1,300 at most). `MOST_BUCKETS` bounds a cell whose values span
many decades: the smallest of its buckets are then counted as one.

Source: Masson, Rim, Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
guarantees", VLDB 2019.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streams.occurrence import IntArray

FloatArray = NDArray[np.float64]
KeyArray = NDArray[np.int64]

#: Largest relative error of a quantile.
ACCURACY = 0.0002
#: Buckets of one cell.
MOST_BUCKETS = 4096
SMALLEST, LARGEST = 1e-12, 1e150

_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GAMMA = math.log(_GAMMA)
#: Number of the bucket of SMALLEST, so that magnitudes start at 0.
_OFFSET = -math.ceil(math.log(SMALLEST) / _LOG_GAMMA)
_CODE_BITS = 21
_CODE = (1 << _CODE_BITS) - 1
_ZERO = 1 << (_CODE_BITS - 1)
#: New values are held unsorted up to this many.
_PENDING = 1 << 16


def encode(x: FloatArray) -> KeyArray:
    """Return the bucket of each value, int64 [n], ordered as the values are; NaN is not allowed."""
    magnitude = np.abs(x)
    np.clip(magnitude, SMALLEST, LARGEST, out=magnitude)
    np.log(magnitude, out=magnitude)
    magnitude *= 1 / _LOG_GAMMA
    np.ceil(magnitude, out=magnitude)
    magnitude += _OFFSET
    np.maximum(magnitude, 0, out=magnitude)
    np.copysign(magnitude, x, out=magnitude)
    magnitude += _ZERO
    return magnitude.astype(np.int64)


def decode(codes: KeyArray) -> FloatArray:
    """Return the middle of each bucket, float64 [n]."""
    magnitude = np.abs(codes - _ZERO)
    middle = np.exp((magnitude - _OFFSET) * _LOG_GAMMA) * (2 / (_GAMMA + 1))
    return np.where(magnitude == 0, 0.0, np.copysign(middle, codes - _ZERO))


class BucketCounts:
    """The buckets of all cells: sorted keys (cell, bucket) with counts, and the values that came since."""

    def __init__(self) -> None:
        self._keys: KeyArray = np.empty(0, np.int64)
        self._counts: KeyArray = np.empty(0, np.int64)
        self._new: list[KeyArray] = []
        self._pending = 0

    def add(self, cells: IntArray, values: FloatArray) -> None:
        """Count values, [n], each in its cell, [n]; NaN is not allowed."""
        keys = encode(values)
        keys |= cells << _CODE_BITS
        self._new.append(keys)
        self._pending += len(keys)
        if self._pending > max(_PENDING, len(self._keys)):
            self._merge()

    def move(self, source: IntArray, target: IntArray) -> None:
        """Add the counts of cells, [m], to those of others, [m]; the first are then to be dropped."""
        self._merge()
        owner, codes, counts = self.of(source)
        keys = (target[owner].astype(np.int64) << _CODE_BITS) | codes
        order = np.argsort(keys)
        self._keys, self._counts = _merge(self._keys, self._counts, keys[order], counts[order])

    def drop(self, dead: NDArray[np.bool_]) -> None:
        """Forget cells; `dead` is bool [cells]."""
        self._merge()
        keep = ~dead[self._keys >> _CODE_BITS]
        self._keys, self._counts = self._keys[keep], self._counts[keep]

    def _merge(self) -> None:
        if not self._new:
            return
        keys, counts = _count(np.concatenate(self._new))
        self._new, self._pending = [], 0
        self._keys, self._counts = _merge(self._keys, self._counts, keys, counts)

    def of(self, cells: IntArray) -> tuple[IntArray, KeyArray, KeyArray]:
        """Return the buckets of some cells.

        Args:
            cells: intp [m], none twice.

        Returns:
            intp [b], the place in `cells` that each bucket belongs to; int64 [b], the bucket; int64 [b], its
            count. Ordered by place and bucket, a bucket of a cell only once.
        """
        if len(cells) * 4 > self._pending:  # many: cheaper to look into one sorted list
            self._merge()
        base = cells.astype(np.int64) << _CODE_BITS
        begin = np.searchsorted(self._keys, base)
        length = np.searchsorted(self._keys, base + (1 << _CODE_BITS)) - begin
        owner = np.repeat(np.arange(len(cells)), length)
        take = np.repeat(begin - np.cumsum(length) + length, length) + np.arange(len(owner))
        keys = (owner << _CODE_BITS) | (self._keys[take] & _CODE)
        counts = self._counts[take]
        if self._new:
            top = int(cells.max(initial=-1)) + 1
            place = np.full(top + 1, -1, np.intp)
            place[cells] = np.arange(len(cells))
            found = []
            for new in self._new:
                owner = place[np.minimum(new >> _CODE_BITS, top)]
                mine = owner >= 0
                found.append((owner[mine] << _CODE_BITS) | (new[mine] & _CODE))
            keys, counts = _merge(keys, counts, *_count(np.concatenate(found)))
        return (keys >> _CODE_BITS).astype(np.intp), keys & _CODE, counts

    def __len__(self) -> int:
        return len(self._keys) + self._pending

    def dump(self, number: NDArray[np.int64]) -> tuple[KeyArray, KeyArray]:
        """Return keys, sorted, and counts, for `load`.

        Args:
            number: int64 [cells], the number that each cell gets, rising with the cell; -1 to leave it out.
        """
        self._merge()
        cells = number[self._keys >> _CODE_BITS]
        keep = cells >= 0
        keys = (cells << _CODE_BITS) | (self._keys & _CODE)
        return keys[keep], self._counts[keep]

    def load(self, keys: KeyArray, counts: KeyArray) -> None:
        """Replace everything by what `dump` gave."""
        self._keys, self._counts, self._new, self._pending = keys, counts, [], 0


def _count(keys: KeyArray) -> tuple[KeyArray, KeyArray]:
    """Return the distinct keys, sorted, and how often each is there."""
    keys = np.sort(keys)  # ten times as fast as an argsort, which counts beside the keys would need
    first = np.ones(len(keys), np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    return keys[starts], np.diff(starts, append=len(keys))


def _merge(
    keys: KeyArray, counts: KeyArray, more: KeyArray, more_counts: KeyArray
) -> tuple[KeyArray, KeyArray]:
    """Join two sorted lists of distinct keys, adding up counts, each cell within `MOST_BUCKETS`."""
    if not len(keys):
        keys, counts = more, more_counts
    else:
        at = np.searchsorted(keys, more)
        known = keys[np.minimum(at, len(keys) - 1)] == more
        counts = counts.copy()
        counts[at[known]] += more_counts[known]
        fresh = ~known
        keys, counts = (
            np.insert(keys, at[fresh], more[fresh]),
            np.insert(counts, at[fresh], more_counts[fresh]),
        )
    cells = keys >> _CODE_BITS
    # a cell is too long where its key MOST_BUCKETS further on is still of the same cell
    if len(keys) > MOST_BUCKETS and (cells[MOST_BUCKETS:] == cells[:-MOST_BUCKETS]).any():
        return _collapse(keys, counts, cells)
    return keys, counts


def _collapse(keys: KeyArray, counts: KeyArray, cells: KeyArray) -> tuple[KeyArray, KeyArray]:
    """Count the buckets of too long a cell that are nearest to 0 as one, the nearest that is kept."""
    out_keys, out_counts = [], []
    starts = np.flatnonzero(np.append(True, cells[1:] != cells[:-1]))
    for begin, end in zip(starts.tolist(), [*starts[1:].tolist(), len(keys)], strict=True):
        key, count = keys[begin:end], counts[begin:end]
        if end - begin > MOST_BUCKETS:
            size = np.abs((key & _CODE) - _ZERO)
            kept = np.sort(np.argsort(-size, kind="stable")[:MOST_BUCKETS])
            nearest = kept[size[kept].argmin()]
            folded = count.copy()
            folded[nearest] += count.sum() - count[kept].sum()
            key, count = key[kept], folded[kept]
        out_keys.append(key)
        out_counts.append(count)
    return np.concatenate(out_keys), np.concatenate(out_counts)


def quantiles(
    owner: IntArray, codes: KeyArray, counts: KeyArray, groups: int, ranks: tuple[float, ...]
) -> FloatArray:
    """Work out quantiles of groups of buckets.

    Args:
        owner: intp [b], the group of each bucket, 0 <= owner < groups.
        codes: int64 [b].
        counts: int64 [b].
        groups: how many groups there are.
        ranks: such as 0.5 and 0.95.

    Returns:
        float64 [groups, ranks]; NaN for a group without buckets.
    """
    total = np.bincount(owner, weights=counts, minlength=groups).astype(np.int64)
    keys = (owner.astype(np.int64) << _CODE_BITS) | codes
    if (keys[1:] < keys[:-1]).any():
        order = np.argsort(keys, kind="stable")  # it is made of sorted runs
        codes, counts = codes[order], counts[order]
    passed = np.cumsum(counts)
    before = np.cumsum(total) - total
    out = np.full((groups, len(ranks)), np.nan)
    some = total > 0
    for column, rank in enumerate(ranks):
        target = before + np.floor(rank * (total - 1)).astype(np.int64)
        at = np.searchsorted(passed, target[some], side="right")
        out[some, column] = decode(codes[at])
    return out
