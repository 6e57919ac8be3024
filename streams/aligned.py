"""Tumbling and hopping windows: aligned to the epoch, made of panes.

Window w is [w hop, w hop + size). A pane is the longest time that divides both hop and size, so that a window
is a whole number of panes; pane p is [p pane, (p + 1) pane). A reading is put into its pane alone; a window
is put together from its panes when it closes. A tumbling window hops by its size and is one pane.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from streams.cells import Cells, Closed
from streams.errors import ConfigError, Fault
from streams.occurrence import IntArray, RowArray, sort_by_row

FloatArray = NDArray[np.float64]

#: Panes that one window may have.
MOST_PANES = 10_000


def panes(size_s: float, hop_s: float) -> tuple[float, int, int]:
    """Return how long a pane is, and how many make up a window and a hop.

    Raises:
        ConfigError: a window would have more than `MOST_PANES`.

    >>> panes(60, 25)
    (5.0, 12, 5)
    """
    size, hop = Fraction(str(size_s)), Fraction(str(hop_s))
    common = Fraction(
        math.gcd(size.numerator * hop.denominator, hop.numerator * size.denominator),
        size.denominator * hop.denominator,
    )
    if size / common > MOST_PANES:
        raise ConfigError(
            [
                Fault(
                    "hop_s",
                    f"{hop_s} and size_s {size_s} divide only into panes of {float(common)} s, more than "
                    f"{MOST_PANES} a window: choose a hop_s that size_s is a multiple of",
                )
            ]
        )
    return float(common), int(size / common), int(hop / common)


class Aligned:
    """The open panes of all sensors.

    Args:
        size_s: length of a window, seconds.
        hop_s: time from the start of one window to that of the next.
        k: fields.
    """

    def __init__(self, size_s: float, hop_s: float, k: int) -> None:
        self._size_s, self._hop_s = size_s, hop_s
        self._pane_s, self._per_size, self._per_hop = panes(size_s, hop_s)
        self.cells = Cells(k)
        self._where: dict[tuple[int, int], int] = {}  # (pane, row) to cell
        self._closed = -np.inf
        self.next_end = np.inf

    def ends_from(self, ts: float) -> float:
        """See `windows._Windows`."""
        hop, size = self._hop_s, self._size_s
        first = -((self._per_size - 1 - math.floor(ts / self._pane_s)) // self._per_hop)
        end = first * hop + size
        if end > self._closed:
            return end
        after = (math.floor((self._closed - size) / hop) + 1) * hop + size
        return after if after > self._closed else after + hop

    def _end(self, window: NDArray[np.int64]) -> FloatArray:
        return np.asarray(window * self._hop_s + self._size_s, np.float64)

    def _panes(self, ts: FloatArray) -> NDArray[np.int64]:
        return np.clip(np.floor(ts / self._pane_s), -(2.0**62), 2.0**62).astype(np.int64)

    def _last_end(self, pane: NDArray[np.int64]) -> FloatArray:
        """Return the end of the last window that each pane is in."""
        return self._end(pane // self._per_hop)

    def _first(self, pane: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first window that each pane is in."""
        return -((self._per_size - 1 - pane) // self._per_hop)

    def split(self, ts: FloatArray, marks: FloatArray) -> list[int]:
        """See `windows._Windows`."""
        if self._per_size <= self._per_hop:
            return []
        pane = self._panes(ts)
        # late for some of their windows, not for all
        straggling = (self._end(self._first(pane)) <= marks) & (self._last_end(pane) > marks)
        cuts: list[int] = []
        cut_mark = -np.inf
        for at in np.flatnonzero(straggling).tolist():
            # needed only where a window has ended since the last cut
            if np.floor((marks[at] - self._size_s) / self._hop_s) != cut_mark:
                cut_mark = np.floor((marks[at] - self._size_s) / self._hop_s)
                cuts.append(at)
        return cuts

    def add(self, rows: RowArray, values: FloatArray, ts: FloatArray, marks: FloatArray) -> int:
        """See `windows._Windows`."""
        pane = self._panes(ts)
        left_out = self._last_end(pane) <= marks
        lost = int(np.count_nonzero(left_out))
        if self._per_hop > self._per_size:  # between two windows: in none, and not late
            between = pane % self._per_hop >= self._per_size
            lost = int(np.count_nonzero(left_out & ~between))
            left_out |= between
        keep: IntArray | None = None
        if left_out.any():
            keep = np.flatnonzero(~left_out)
            rows, pane = rows[keep], pane[keep]
        if not len(rows):
            return lost
        oldest = int(pane.min())
        span = int(pane.max()) - oldest + 1
        if span > 1 << 30:
            distinct_panes, number = np.unique(pane, return_inverse=True)
        else:
            distinct_panes, number = np.arange(oldest, oldest + span), pane - oldest
        order, _, starts, _, groups = sort_by_row(rows * np.int64(len(distinct_panes)) + number)
        group_rows, at = np.divmod(groups, len(distinct_panes))
        group_panes = distinct_panes[at]
        cells = self._find(group_rows, group_panes)
        self.cells.add(cells, starts, order if keep is None else keep.take(order), values)
        return lost

    def _find(self, rows: IntArray, pane: NDArray[np.int64]) -> IntArray:
        """Return the cell of each group, opened where there is none."""
        keys = list(zip(pane.tolist(), rows.tolist(), strict=True))
        found = np.array([self._where.get(key, -1) for key in keys], np.intp)
        missing = np.flatnonzero(found < 0)
        if len(missing):
            new = self.cells.open(len(missing))
            found[missing] = new
            self.cells.table["row"][new] = rows[missing]
            self.cells.table["pane"][new] = pane[missing]
            self._where.update(zip([keys[at] for at in missing.tolist()], new.tolist(), strict=True))
            ends = self._end(self._first(pane[missing]))
            open_ends = ends[ends > self._closed]
            self.next_end = min(self.next_end, float(open_ends.min()) if len(open_ends) else self._closed)
        return found

    def close(self, mark: float) -> Closed | None:
        """See `windows._Windows`."""
        if mark < self.next_end:
            self._closed = max(self._closed, mark)
            return None
        live = self.cells.live()
        pane = self.cells.table["pane"][live]
        first, last = self._first(pane), pane // self._per_hop
        # every window that each cell is in
        times = last - first + 1
        place = np.repeat(np.arange(len(live)), times)
        window = np.repeat(first - (np.cumsum(times) - times), times) + np.arange(int(times.sum()))
        ends = self._end(window)
        pending = ends > mark
        self.next_end = float(ends[pending].min()) if pending.any() else np.inf
        due = (ends > self._closed) & ~pending
        self._closed = mark
        window, place = window[due], place[due]
        closed = self._summarise(live[place], window)
        over = live[self._end(last) <= mark]
        table = self.cells.table
        for key in zip(table["pane"][over].tolist(), table["row"][over].tolist(), strict=True):
            del self._where[key]
        self.cells.release(over)
        return closed

    def _summarise(self, cells: IntArray, window: NDArray[np.int64]) -> Closed | None:
        if not len(cells):
            return None
        rows = self.cells.table["row"][cells]
        order = np.lexsort((rows, window))
        window, rows = window[order], rows[order]
        first = np.ones(len(order), np.bool_)
        first[1:] = (window[1:] != window[:-1]) | (rows[1:] != rows[:-1])
        starts = np.flatnonzero(first)
        return Closed(
            rows=rows[starts],
            start=np.asarray(window[starts] * self._hop_s, np.float64),
            end=self._end(window[starts]),
            statistics=self.cells.summarise(cells[order], starts),
        )

    def reload(self, mark: float) -> None:
        """See `windows._Windows`."""
        self._closed = mark
        live = self.cells.live()
        table = self.cells.table
        keys = zip(table["pane"][live].tolist(), table["row"][live].tolist(), strict=True)
        self._where = dict(zip(keys, live.tolist(), strict=True))
        self.next_end = -np.inf  # worked out at the next close
