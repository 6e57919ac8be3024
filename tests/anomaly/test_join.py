"""Rows of a group from the readings of its members."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly.join import Join, Joined

MAX_AGE_S = 10.0
Reading = tuple[int, int, float, float]
Row = tuple[int, int, float, list[float]]


class Plain:
    """The reference: one group, in plain Python."""

    def __init__(self, members: int) -> None:
        self.members = range(members)
        self.held: dict[int, tuple[float, float]] = {}
        self.renewed: set[int] = set()
        self.begun = 0.0

    def row(self) -> tuple[float, list[float]]:
        newest = max(ts for ts, _ in self.held.values())
        young = {j: x for j, (ts, x) in self.held.items() if newest - ts <= MAX_AGE_S}
        self.renewed = set()
        return newest, [young.get(j, math.nan) for j in self.members]

    def take(self, member: int, x: float, ts: float) -> tuple[float, list[float]] | None:
        if math.isnan(x) or (member in self.held and ts <= self.held[member][0]):
            return None
        ended = None
        if self.renewed and ts - self.begun > MAX_AGE_S:
            ended = self.row()
        self.held[member] = (ts, x)
        if max(at for at, _ in self.held.values()) - ts <= MAX_AGE_S:
            self.begun = min(self.begun, ts) if self.renewed else ts
            self.renewed.add(member)
        return self.row() if len(self.renewed) == len(self.members) else ended


def plain(readings: list[Reading], members: int) -> tuple[list[Row], int]:
    groups: dict[int, Plain] = {}
    rows, incomplete = [], 0
    for i, (group, member, x, ts) in enumerate(readings):
        ended = groups.setdefault(group, Plain(members)).take(member, x, ts)
        if ended is not None:
            values = ended[1]
            missing = sum(map(math.isnan, values))
            incomplete += missing > 0
            if members - missing >= 2:
                rows.append((i, group, *ended))
    return rows, incomplete


def columns(readings: list[Reading]) -> tuple[Any, Any, Any, Any]:
    rows, members, values, ts = zip(*readings, strict=True) if readings else ((), (), (), ())
    return np.array(rows, np.int32), np.array(members, np.intp), np.array(values, float), np.array(ts, float)


def told(joined: Joined, start: int = 0) -> list[Row]:
    at = (joined.at + start).tolist()
    return list(zip(at, joined.rows.tolist(), joined.ts.tolist(), joined.values.tolist(), strict=True))


def run(join: Join, state: NDArray[np.void], *readings: tuple[int, float, float]) -> list[Row]:
    return told(join.update(state, *columns([(0, *reading) for reading in readings])))


@settings(deadline=None)  # compiles at the first call
@given(
    st.integers(2, 4).flatmap(
        lambda k: st.tuples(
            st.just(k),
            st.lists(
                st.tuples(
                    st.integers(0, 2),
                    st.integers(0, k - 1),
                    st.sampled_from([1.0, 2.5, math.nan]),
                    # times go on by about one a reading, with lateness, repetitions and gaps
                    st.integers(-14, 14).map(float),
                ),
                max_size=60,
            ),
        )
    ),
    st.lists(st.integers(0, 60), max_size=5),
)
def test_any_cut_gives_the_rows_of_the_reference(case: tuple[int, list[Reading]], cuts: list[int]) -> None:
    members, drawn = case
    readings = [(g, j, x, 1000.0 + i + ts) for i, (g, j, x, ts) in enumerate(drawn)]
    expected, incomplete = plain(readings, members)
    join = Join(members, MAX_AGE_S)
    state, rows, missed = join.init(3), list[Row](), 0
    edges = sorted({0, *(min(cut, len(readings)) for cut in cuts), len(readings)})
    for start, stop in itertools.pairwise(edges):
        joined = join.update(state, *columns(readings[start:stop]))
        rows += told(joined, start)
        missed += joined.incomplete
        state = np.frombuffer(state.tobytes(), join.dtype).copy()
    np.testing.assert_equal(rows, expected)
    assert missed == incomplete


def test_one_row_a_cycle_at_the_pace_of_the_slowest_member() -> None:
    join = Join(2, MAX_AGE_S)
    fast = [(0, float(t), float(t)) for t in range(1, 13)]
    readings = sorted([*fast, (1, 100.0, 4.5), (1, 101.0, 8.5), (1, 102.0, 12.5)], key=lambda r: r[2])
    rows = run(join, join.init(1), *readings)
    assert [(ts, values) for _, _, ts, values in rows] == [
        (4.5, [4.0, 100.0]),
        (8.5, [8.0, 101.0]),
        (12.5, [12.0, 102.0]),
    ]


def test_late_readings_and_duplicates_overwrite_nothing() -> None:
    join = Join(2, MAX_AGE_S)
    rows = run(join, join.init(1), (0, 1.0, 100.0), (0, 2.0, 99.0), (0, 3.0, 100.0), (1, 4.0, 98.0))
    assert [(ts, values) for _, _, ts, values in rows] == [(100.0, [1.0, 4.0])]


def test_a_member_that_stays_away_is_missing_after_max_age() -> None:
    join = Join(3, MAX_AGE_S)
    state = join.init(1)
    assert len(run(join, state, (0, 1.0, 100.0), (1, 2.0, 101.0), (2, 3.0, 102.0))) == 1
    # held from the row before, then too old
    (held,) = run(join, state, (0, 4.0, 103.0), (1, 5.0, 105.0), (0, 6.0, 113.5))
    np.testing.assert_equal(held[2:], (105.0, [4.0, 5.0, 3.0]))
    (missing,) = run(join, state, (1, 7.0, 114.0), (0, 8.0, 124.0))
    np.testing.assert_equal(missing[2:], (114.0, [6.0, 7.0, math.nan]))


def test_members_that_go_on_dont_put_off_the_end_of_a_cycle() -> None:
    join = Join(3, MAX_AGE_S)
    readings = [(j, float(t), t + j / 10) for t in range(100, 140) for j in (0, 1)]
    joined = join.update(join.init(1), *columns([(0, *reading) for reading in readings]))
    assert joined.incomplete == 3
    assert joined.ts.tolist() == [110.0, 120.1, 131.0]


def test_a_member_alone_is_counted_and_makes_no_row() -> None:
    join = Join(2, MAX_AGE_S)
    state = join.init(1)
    joined = join.update(state, *columns([(0, 1, 1.0, 100.0 + 11 * i) for i in range(5)]))
    assert (len(joined.rows), joined.incomplete) == (0, 4)
