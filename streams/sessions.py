"""Session windows: a sensor's readings until it is silent for `gap_s`.

A reading joins an open session of its sensor that it is within the gap of, on either side; where it is
within the gap of two, they become one. A session closes when the watermark reaches its last reading + gap.
A reading that joins none and is itself older than the watermark by the gap or more is late.

In order a reading can only join its sensor's newest session, so that the sessions of a chunk follow from
comparing each reading with the one before it, all at once. Only sensors whose readings are out of order in
this chunk, or older than their newest session, are taken one reading at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streams.cells import Cells, Closed
from streams.occurrence import IntArray, RowArray, sort_by_row

FloatArray = NDArray[np.float64]


class Sessions:
    """The open sessions of all sensors.

    Args:
        gap_s: the silence that ends a session, seconds.
        k: fields.
    """

    def __init__(self, gap_s: float, k: int) -> None:
        self._gap_s = gap_s
        self.cells = Cells(k)
        self._open: dict[int, list[int]] = {}  # row to cells, oldest first
        self.next_end = np.inf

    def ends_from(self, ts: float) -> float:
        """See `windows._Windows`."""
        return ts + self._gap_s

    def split(self, ts: FloatArray, marks: FloatArray) -> list[int]:
        """See `windows._Windows`: every reading is compared with its own watermark, no cut is needed."""
        return []

    def add(self, rows: RowArray, values: FloatArray, ts: FloatArray, marks: FloatArray) -> int:
        """See `windows._Windows`."""
        if not len(rows):
            return 0
        order, segment, starts, _, distinct = sort_by_row(rows)
        at, mark = ts.take(order), marks.take(order)
        newest = self._newest(distinct)
        table = self.cells.table
        last = np.full(len(distinct), -np.inf)
        known = newest >= 0
        last[known] = table["last"][newest[known]]
        before = np.empty_like(at)
        before[1:] = at[:-1]
        before[starts] = last
        disordered = np.zeros(len(distinct), np.bool_)
        disordered[segment[at < before]] = True

        assigned = np.full(len(order), -1, np.intp)
        plain = ~disordered[segment]
        if plain.any():
            self._in_order(np.flatnonzero(plain), segment, distinct, newest, last, at, mark, assigned)
        ends = np.append(starts[1:], len(order))
        for number in np.flatnonzero(disordered).tolist():
            part = slice(int(starts[number]), int(ends[number]))
            assigned[part] = self._one_by_one(int(distinct[number]), at[part].tolist(), mark[part].tolist())
        there = np.flatnonzero(assigned >= 0)
        by_cell, _, begins, _, cells = sort_by_row(assigned[there])
        self.cells.add(cells, begins, order[there[by_cell]], values)
        return len(order) - len(there)

    def _newest(self, rows: IntArray) -> IntArray:
        """Return the newest open session of each row, -1 for none."""
        found = [self._open.get(row) for row in rows.tolist()]
        return np.array([cells[-1] if cells else -1 for cells in found], np.intp)

    def _in_order(
        self,
        there: IntArray,
        segment: IntArray,
        distinct: IntArray,
        newest: IntArray,
        last: FloatArray,
        at: FloatArray,
        mark: FloatArray,
        assigned: IntArray,
    ) -> None:
        """Assign the readings of sensors whose readings are in order; `there` says which."""
        gap = self._gap_s
        # late ones join nothing: they are further than the gap from all before them
        there = there[at[there] + gap > mark[there]]
        if not len(there):
            return
        t, of = at[there], segment[there]
        first = np.ones(len(there), np.bool_)
        np.not_equal(of[1:], of[:-1], out=first[1:])
        before = np.empty_like(t)
        before[1:] = t[:-1]
        before[first] = last[of[first]]
        # a new session: too long after the reading before, or that session had closed by then
        fresh = (t - before > gap) | (before + gap <= mark[there])
        begins = np.flatnonzero(first | fresh)
        opened = fresh[begins]
        cells = np.where(opened, -1, newest[of[begins]])
        new = self.cells.open(int(np.count_nonzero(opened)))
        cells[opened] = new
        table = self.cells.table
        run_ends = np.append(begins[1:], len(there)) - 1
        new_rows = distinct[of[begins[opened]]]
        table["row"][new] = new_rows
        table["start"][new] = t[begins[opened]]
        self.next_end = min(self.next_end, float(t[begins[opened]].min(initial=np.inf)) + gap)
        table["last"][cells] = t[run_ends]
        assigned[there] = np.repeat(cells, run_ends - begins + 1)
        for row, cell in zip(new_rows.tolist(), new.tolist(), strict=True):
            self._open.setdefault(row, []).append(cell)

    def _one_by_one(self, row: int, times: list[float], marks: list[float]) -> list[int]:
        """Assign one sensor's readings, -1 for a late one; sessions may join."""
        gap, cells = self._gap_s, self.cells
        held = self._open.setdefault(row, [])
        spans = [(float(cells.table["start"][c]), float(cells.table["last"][c]), c) for c in held]
        joined: dict[int, int] = {}  # a cell that became part of another
        assigned: list[int] = []
        for t, mark in zip(times, marks, strict=True):
            touching = [
                span for span in spans if span[0] - gap <= t <= span[1] + gap and span[1] + gap > mark
            ]
            if not touching:
                if t + gap <= mark:
                    assigned.append(-1)
                    continue
                cell = int(cells.open(1)[0])
                cells.table["row"][cell] = row
                spans.append((t, t, cell))
                self.next_end = min(self.next_end, t + gap)
            else:
                cell = touching[0][2]
                joined.update((span[2], cell) for span in touching[1:])
                start = min(t, *(span[0] for span in touching))
                last = max(t, *(span[1] for span in touching))
                spans = [span for span in spans if span not in touching]
                spans.append((start, last, cell))
            assigned.append(cell)
        final = {other: _root(joined, other) for other in joined}
        for start, last, cell in spans:
            cells.table["start"][cell], cells.table["last"][cell] = start, last
        for other, cell in final.items():
            start, last = cells.table["start"][cell], cells.table["last"][cell]
            cells.absorb(cell, other)
            cells.table["start"][cell], cells.table["last"][cell] = start, last
        cells.release(np.array(list(final), np.intp))
        spans.sort()
        self._open[row] = [cell for _, _, cell in spans]
        return [final.get(cell, cell) for cell in assigned]

    def close(self, mark: float) -> Closed | None:
        """See `windows._Windows`."""
        if mark < self.next_end:
            return None
        live = self.cells.live()
        ends = self.cells.table["last"][live] + self._gap_s
        over = live[ends <= mark]
        self.next_end = float(ends[ends > mark].min(initial=np.inf))
        if not len(over):
            return None
        table = self.cells.table
        closed = Closed(
            rows=table["row"][over],
            start=table["start"][over],
            end=table["last"][over] + self._gap_s,
            statistics=self.cells.summarise(over, np.arange(len(over))),
        )
        for row, cell in zip(closed.rows.tolist(), over.tolist(), strict=True):
            held = self._open[row]
            held.remove(cell)
            if not held:
                del self._open[row]
        self.cells.release(over)
        return closed

    def reload(self, mark: float) -> None:
        """See `windows._Windows`."""
        live = self.cells.live()
        table = self.cells.table
        self._open = {}
        self.next_end = -np.inf  # worked out at the next close
        for cell in live[np.argsort(table["last"][live], kind="stable")].tolist():
            self._open.setdefault(int(table["row"][cell]), []).append(cell)


def _root(joined: dict[int, int], cell: int) -> int:
    while cell in joined:
        cell = joined[cell]
    return cell
