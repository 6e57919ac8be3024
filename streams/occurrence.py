"""Which readings of a chunk may be handled together.

A chunk holds readings of many sensors, some more than once. State that depends on a sensor's own past
must take them in order, while NumPy wants wide arrays. `Rounds` lays a chunk out so that both hold: the
first readings of all sensors make round 0, the second readings round 1, and so on. Sensors are ranked by
how many readings they have, most first, so that a round is always a prefix of that ranking and every
slice is contiguous:

    rows            7 3 7 9 7 3          rank: 7 (3 readings), 3 (2), 9 (1)
    round 0         7 3 9                readings 0 1 3
    round 1         7 3                  readings 2 5
    round 2         7                    reading  4

Late rounds are narrow, and not worth a chain of NumPy calls. `Costs` says from where on they are left out;
the readings that would be in them become *tails*: for each sensor concerned one run of its last readings,
in order. So a chunk with all its readings from one sensor is one tail, and no shape of chunk is slow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.intp]
RowArray = NDArray[np.int32]


class Costs(NamedTuple):
    """What the caller spends, in any one unit: on a round, on a tail, and on each reading of a tail."""

    per_round: float
    per_tail: float
    per_tail_reading: float


class Tail(NamedTuple):
    """The last readings of one sensor: positions [start, stop) of `Rounds.order`."""

    rank: int
    start: int
    stop: int


class Rounds:
    """One chunk by occurrence.

    Args:
        rows: int32 [n], the sensor of each reading, in log order; not negative, n < 2**31.
        costs: what rounds and tails cost the caller; decides where rounds end.

    Attributes:
        rows: intp [u], the distinct sensors, those with most readings first.
        counts: intp [u], how many readings each of them has.
        order: intp [n], the readings: round by round, then tail by tail.
        place: intp [n], where in `order` each reading is. `x.take(order, axis=0)` lays columns out and
            `y.take(place, axis=0)` brings results back (four times as fast as `x[order]`, `z[order] = y`).
        widths: the number of sensors in each round; round r is `order[offset : offset + widths[r]]`, where
            offset is the sum of the widths before it, and belongs to `rows[: widths[r]]`.
        tails: what is left, one for each sensor that has more readings than there are rounds.
    """

    __slots__ = ("counts", "order", "place", "rows", "tails", "widths")

    def __init__(self, rows: RowArray, costs: Costs) -> None:
        n = len(rows)
        by_row, segment, starts, counts, distinct = sort_by_row(rows)
        rank = np.argsort(-counts, kind="stable")
        self.rows: IntArray = distinct[rank]
        self.counts: IntArray = counts[rank]
        most = int(self.counts[0]) if n else 0
        # widths[r]: the sensors with more than r readings
        widths = len(counts) - np.cumsum(np.bincount(counts, minlength=most + 1)[:most])
        full = _cheapest(n, widths, costs)
        self.widths: list[int] = widths[:full].tolist()
        self.tails: list[Tail] = []

        # readings of round r start at offsets[r]; those of later rounds go beyond n, out of the way
        offsets = np.full(most, n, np.intp)
        if full:
            offsets[0] = 0
            np.cumsum(widths[: full - 1], out=offsets[1:full])
        ranked = np.empty(len(counts), np.intp)
        ranked[rank] = np.arange(len(counts))
        position = np.arange(n)
        position -= starts.take(segment)  # which of its sensor's readings each is
        position = offsets.take(position)
        position += ranked.take(segment)
        order = np.empty(n + len(counts), np.intp)
        order[position] = by_row
        self.order: IntArray = order[:n]
        start = sum(self.widths)
        tails = widths[full] if full < most else 0
        for at, (first, count) in enumerate(
            zip(starts[rank[:tails]].tolist(), self.counts[:tails].tolist(), strict=True)
        ):
            stop = start + count - full
            self.tails.append(Tail(at, start, stop))
            self.order[start:stop] = by_row[first + full : first + count]
            start = stop
        self.place: IntArray = np.empty(n, np.intp)
        self.place[self.order] = np.arange(n)


def _cheapest(n: int, widths: IntArray, costs: Costs) -> int:
    """Return how many rounds to take before the tails, at the least cost."""
    most = len(widths)
    if most < 2:
        return most
    left = np.empty(most + 1)  # readings and tails after r rounds
    left[0] = n
    np.subtract(n, np.cumsum(widths), out=left[1:])
    left *= costs.per_tail_reading
    left[:-1] += widths * costs.per_tail
    left += np.arange(most + 1) * costs.per_round
    return int(left.argmin())


def sort_by_row(
    rows: NDArray[np.signedinteger],
) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
    """Group the readings of a chunk by sensor, or by any other number, keeping their order.

    Args:
        rows: int [n], not negative.

    Returns:
        `by_row` intp [n], the readings sorted by row and then by position; `segment` intp [n], for each of
        these the number of its row; and for each distinct row, ascending, intp [u]: where its readings start
        in `by_row`, how many there are, and the row.
    """
    n = len(rows)
    # One sort of keys (row, position), 57 us at n = 8192 in 64 bits and 31 us in 32, against 405 us for a
    # stable argsort of int32.
    shift = n.bit_length()
    top = int(rows.max()) if n else 0
    if top >= 1 << (63 - shift):
        known, numbers = np.unique(rows, return_inverse=True)
        by_row, segment, starts, counts, distinct = sort_by_row(numbers)
        return by_row, segment, starts, counts, known[distinct].astype(np.intp)
    narrow = top < 1 << (32 - shift)
    key = rows.astype(np.uint32) if narrow else rows.astype(np.int64)
    key <<= shift
    key |= np.arange(n, dtype=key.dtype)
    key.sort()
    by_row = (key & ((1 << shift) - 1)).astype(np.intp)
    key >>= shift
    first = np.empty(n, np.bool_)
    first[:1] = True
    np.not_equal(key[1:], key[:-1], out=first[1:])
    segment = np.cumsum(first, dtype=np.intp)
    segment -= 1
    starts = np.flatnonzero(first)
    counts = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=counts[:-1])
    if n:
        counts[-1] = n - starts[-1]
    return by_row, segment, starts, counts, key[starts].astype(np.intp)
