"""Readings of several sensors of a group made into one row, so that a detector can score them together.

A group (a site) has k members (inflow, outflow, level), each read by a sensor of its own at times of its own.
Each member holds its value with the latest event time; an older reading, or one of the same time, which is
mostly a duplicate, overwrites nothing. A row is made once in a *cycle*, not at each reading, so that k
members don't give k rows that are mostly repeated:

* when every member has been renewed since the last row; the slowest member sets the pace;
* or, where one doesn't come, at the first reading that is more than `max_age_s` younger than the first of
  the cycle; this reading begins the next one. No clock: who is silent altogether makes no rows.

The row's time is the newest of the group, and members that are older by more than `max_age_s` are NaN in it.
A row of a single member says nothing of relations and is only counted. A reading that is late by more than
`max_age_s` is kept as its member's value, but does not count as renewed.

State is columns that the caller owns, one row a group, zero for never seen; any cut of the readings gives the
same rows. Cost: 0.01 us a reading with 3 members.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from anomaly.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.detector import FloatArray, RowArray, StateArray

#: What is known of a member: nothing, a value that was in a row already, one that was not.
NEVER, USED, RENEWED = 0, 1, 2
#: A row needs values of so many members.
LEAST = 2


class Joined(NamedTuple):
    """The rows that a chunk of readings made, m of them.

    Attributes:
        rows: int32 [m], the group of each.
        at: intp [m], the reading that made it.
        values: float64 [m, members], NaN for members that are missing.
        ts: float64 [m], event time in seconds since 1970.
        incomplete: cycles that ended without some member, those that made no row included.
    """

    rows: RowArray
    at: NDArray[np.intp]
    values: FloatArray
    ts: FloatArray
    incomplete: int


@compiled
def _finish(cell: Any, max_age_s: float, row: Any) -> int:
    """End a cycle: write its row, and return how many members have a value in it."""
    present = 0
    for a in range(row.shape[0]):
        row[a] = math.nan
        if cell.known[a] != NEVER:
            cell.known[a] = USED
            if cell.newest - cell.ts[a] <= max_age_s:
                row[a] = cell.value[a]
                present += 1
    return present


@compiled
def _run(
    cells: Any,
    rows: Any,
    members: Any,
    values: Any,
    ts: Any,
    max_age_s: float,
    made: Any,
    made_at: Any,
    made_ts: Any,
) -> tuple[int, int]:
    m, incomplete, k = 0, 0, made.shape[1]
    for i in range(rows.shape[0]):
        cell, j, t = cells[rows[i]], members[i], ts[i]
        if values[i] != values[i] or (cell.known[j] != NEVER and t <= cell.ts[j]):
            continue
        renewed, seen = 0, False
        for a in range(k):
            seen = seen or cell.known[a] != NEVER
            renewed += cell.known[a] == RENEWED
        present = 0
        ends = False
        if renewed > 0 and t - cell.begun > max_age_s:
            ends = True
            made_ts[m] = cell.newest
            present = _finish(cell, max_age_s, made[m])
            renewed = 0
        if not seen or t > cell.newest:
            cell.newest = t
        cell.value[j] = values[i]
        cell.ts[j] = t
        if cell.newest - t <= max_age_s:
            cell.begun = t if renewed == 0 else min(cell.begun, t)
            renewed += cell.known[j] != RENEWED
            cell.known[j] = RENEWED
        else:
            cell.known[j] = USED
        if renewed == k:
            # of two members and more, so not where this reading has just begun a cycle
            ends = True
            made_ts[m] = cell.newest
            present = _finish(cell, max_age_s, made[m])
        if ends:
            incomplete += present < k
            if present >= LEAST:
                made_at[m] = i
                m += 1
    return m, incomplete


class Join:
    """Makes rows from the readings of groups.

    Args:
        members: of a group, at least 2.
        max_age_s: how much older than the newest member a value of a row may be, in seconds of event time.
    """

    def __init__(self, members: int, max_age_s: float) -> None:
        self.members, self.max_age_s = members, max_age_s
        self.dtype: np.dtype[Any] = np.dtype(
            [
                ("newest", "<f8"),
                ("begun", "<f8"),  # earliest reading of the cycle, where one is under way
                ("value", "<f8", (members,)),
                ("ts", "<f8", (members,)),
                ("known", "u1", (members,)),
            ]
        )

    def init(self, n: int) -> StateArray:
        """Return the state of n groups that were never seen, [n]."""
        return np.zeros(n, self.dtype)

    def update(
        self, state: StateArray, rows: RowArray, members: NDArray[np.intp], values: FloatArray, ts: FloatArray
    ) -> Joined:
        """Take readings and return the rows that they complete.

        Args:
            state: structured [groups] of `dtype`, changed in place.
            rows: int32 [n], the group of each reading, in log order.
            members: intp [n], the member that it is of.
            values: float64 [n]; NaN is no value and changes nothing.
            ts: float64 [n], event time in seconds since 1970.
        """
        n = len(rows)
        made, at, made_ts = np.empty((n + 1, self.members)), np.empty(n + 1, np.intp), np.empty(n + 1)
        m, incomplete = _run(state, rows, members, values, ts, self.max_age_s, made, at, made_ts)
        at = at[:m]
        return Joined(rows[at], at, made[:m], made_ts[:m], int(incomplete))
