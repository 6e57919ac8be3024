"""The running statistics of open windows, in columns.

A cell is one window of one sensor and holds, for each of k fields, count, mean, sum of squared distances
from the mean, minimum and maximum, and the buckets of a quantile sketch. Cells are numbered; a number is
used again once its cell was released. Nothing here knows how readings come to their windows.

Means and squares are combined by the formula of Chan, Golub, LeVeque (1979), so that a large level does not
eat up a small deviation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streams.occurrence import IntArray
from streams.sketch import BucketCounts, quantiles

FloatArray = NDArray[np.float64]

#: Released cells whose buckets may stay behind before they are swept out.
_SWEEP = 1024


class Statistics(NamedTuple):
    """Of g groups of cells and k fields, [g, k] each; NaN where a field has no value."""

    counts: NDArray[np.int64]
    mean: FloatArray
    low: FloatArray
    high: FloatArray
    std: FloatArray
    p50: FloatArray
    p95: FloatArray


class Closed(NamedTuple):
    """Windows that closed together: rows int32 [g], start and end float64 [g], statistics [g, k]."""

    rows: NDArray[np.int32]
    start: FloatArray
    end: FloatArray
    statistics: Statistics


class Cells:
    """Cells that come and go.

    Args:
        k: fields.

    Attributes:
        table: structured [capacity]: `live`; `row`, the sensor; `pane`, int64 for the owner's use;
            `start` and `last`, event time in seconds; and by field `count`, `mean`, `square`, `low`, `high`.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self.dtype: np.dtype[Any] = np.dtype(
            [
                ("live", "?"),
                ("row", "<i4"),
                ("pane", "<i8"),
                ("start", "<f8"),
                ("last", "<f8"),
                ("count", "<i8", (k,)),
                ("mean", "<f8", (k,)),
                ("square", "<f8", (k,)),
                ("low", "<f8", (k,)),
                ("high", "<f8", (k,)),
            ]
        )
        self.table = np.zeros(0, self.dtype)
        self.buckets = BucketCounts()
        self._free: list[int] = []
        #: released, their buckets still there
        self._dead: list[int] = []

    def __len__(self) -> int:
        return len(self.table) - len(self._free) - len(self._dead)

    def open(self, n: int) -> IntArray:
        """Return n new cells, intp [n], empty."""
        short = n - len(self._free)
        if short > 0:
            old = len(self.table)
            grown = np.zeros(max(old + short, 2 * old, 64), self.dtype)
            grown[:old] = self.table
            self.table = grown
            self._free += range(len(grown) - 1, old - 1, -1)
        taken = [self._free.pop() for _ in range(n)]
        cells = np.array(taken, np.intp)
        self.table[cells] = np.zeros((), self.dtype)
        self.table["live"][cells] = True
        self.table["low"][cells] = np.inf
        self.table["high"][cells] = -np.inf
        return cells

    def release(self, cells: IntArray) -> None:
        """Give cells back."""
        if not len(cells):
            return
        self.table["live"][cells] = False
        self._dead += cells.tolist()
        if len(self._dead) > max(_SWEEP, len(self.table) // 4):
            self._sweep()

    def _sweep(self) -> None:
        dead = np.zeros(len(self.table), np.bool_)
        dead[self._dead] = True
        # buckets belong to (cell, field)
        self.buckets.drop(np.repeat(dead, self._k))
        self._free += self._dead
        self._dead = []

    def dump(self) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.int64]]:
        """Return the live cells, and keys and counts of their buckets, numbered anew; for `load`."""
        live = self.live()
        number = np.full((len(self.table), self._k), -1, np.int64)
        number[live] = np.arange(len(live) * self._k).reshape(-1, self._k)
        return self.table[live], *self.buckets.dump(number.ravel())

    def load(self, table: NDArray[np.void], keys: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Replace everything by what `dump` gave."""
        self.table = table.copy()
        self.buckets.load(keys, counts)
        self._free, self._dead = [], []

    def live(self) -> IntArray:
        """Return the cells in use, intp."""
        return np.flatnonzero(self.table["live"])

    def add(self, cells: IntArray, starts: IntArray, order: IntArray, values: FloatArray) -> None:
        """Take readings that are grouped by cell.

        Args:
            cells: intp [g], none twice.
            starts: intp [g], where in `order` each cell's readings begin.
            order: intp [m], the readings by cell.
            values: float64 [n, k]; NaN where there is none.
        """
        if not len(order):
            return
        lengths = np.diff(starts, append=len(order))
        owner = np.repeat(np.arange(len(cells)), lengths)
        for field in range(self._k):
            x = values[:, field].take(order)
            there = ~np.isnan(x)
            self.buckets.add((cells.take(owner[there]) * self._k) + field, x[there])
            with np.errstate(over="ignore", invalid="ignore"):
                count = np.add.reduceat(there, starts, dtype=np.int64)
                sums = np.add.reduceat(np.where(there, x, 0.0), starts)
                mean = sums / np.maximum(count, 1)
                away = np.where(there, x - mean.take(owner), 0.0)
                square = np.add.reduceat(away * away, starts)
            low = np.minimum.reduceat(np.where(there, x, np.inf), starts)
            high = np.maximum.reduceat(np.where(there, x, -np.inf), starts)
            self._combine(cells, field, count, mean, square, low, high)

    def _combine(
        self,
        cells: IntArray,
        field: int,
        count: NDArray[np.int64],
        mean: FloatArray,
        square: FloatArray,
        low: FloatArray,
        high: FloatArray,
    ) -> None:
        """Join statistics of one field, [g] each, to those of the cells."""
        table = self.table
        had = table["count"][cells, field]
        both = had + count
        share = count / np.maximum(both, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            step = mean - table["mean"][cells, field]
            table["mean"][cells, field] += step * share
            table["square"][cells, field] += square + step * step * (had * share)
        table["count"][cells, field] = both
        table["low"][cells, field] = np.minimum(table["low"][cells, field], low)
        table["high"][cells, field] = np.maximum(table["high"][cells, field], high)

    def absorb(self, cell: int, other: int) -> None:
        """Join one cell to another: times, statistics and buckets; the caller releases `other`."""
        table = self.table
        into = np.array([cell], np.intp)
        theirs = table[other]
        for field in range(self._k):
            parts = [theirs[name][field : field + 1] for name in ("count", "mean", "square", "low", "high")]
            self._combine(into, field, *parts)
        table["start"][cell] = min(table["start"][cell], theirs["start"])
        table["last"][cell] = max(table["last"][cell], theirs["last"])
        fields = np.arange(self._k)
        self.buckets.move(other * self._k + fields, cell * self._k + fields)

    def summarise(self, cells: IntArray, starts: IntArray) -> Statistics:
        """Work out the statistics of groups of cells.

        Args:
            cells: intp [m], ordered by group; a cell may be in several groups.
            starts: intp [g], where each group begins.
        """
        table, k = self.table, self._k
        lengths = np.diff(starts, append=len(cells))
        group = np.repeat(np.arange(len(starts)), lengths)
        counts = table["count"][cells]
        count = np.add.reduceat(counts, starts, axis=0)
        known = np.maximum(count, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            means = table["mean"][cells]
            mean = np.add.reduceat(counts * means, starts, axis=0) / known
            away = means - mean[group]
            square = np.add.reduceat(table["square"][cells] + counts * away * away, starts, axis=0)
        low = np.minimum.reduceat(table["low"][cells], starts, axis=0)
        high = np.maximum.reduceat(table["high"][cells], starts, axis=0)
        middle = self._quantiles(cells, group, len(starts))
        # the middle of a bucket may lie just outside of what was seen
        middle = np.clip(middle.reshape(len(starts), k, 2), low[:, :, None], high[:, :, None])
        empty = count == 0
        for column in (mean, low, high, square):
            column[empty] = np.nan
        np.clip(mean, low, high, out=mean)
        std = np.sqrt(square / known)
        return Statistics(count, mean, low, high, std, middle[:, :, 0], middle[:, :, 1])

    def _quantiles(self, cells: IntArray, group: IntArray, groups: int) -> FloatArray:
        k = self._k
        distinct, place = np.unique(cells, return_inverse=True)
        owner, codes, weights = self.buckets.of((distinct[:, None] * k + np.arange(k)).ravel())
        # a bucket counts in every group that its cell is in
        begin = np.searchsorted(owner, np.arange(len(distinct)) * k)
        length = np.searchsorted(owner, (np.arange(len(distinct)) + 1) * k) - begin
        lengths = length[place]
        first = np.cumsum(lengths) - lengths
        take = np.repeat(begin[place] - first, lengths) + np.arange(int(lengths.sum()))
        of_group = np.repeat(group, lengths) * k + owner[take] % k
        return quantiles(of_group, codes[take], weights[take], groups * k, (0.5, 0.95))
