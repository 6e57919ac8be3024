from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.occurrence import Costs, Rounds, sort_by_row

ROWS = st.lists(st.one_of(st.integers(0, 5), st.integers(0, 2**31 - 1)), max_size=200)
COSTS = st.sampled_from(
    [Costs(1, 1, 1), Costs(10, 20, 0.5), Costs(1000, 1, 1), Costs(0.001, 100, 100), Costs(8, 0, 0)]
)


@settings(deadline=None)
@given(ROWS, COSTS)
def test_rounds_hold_every_reading_once_and_each_sensor_in_order(rows: list[int], costs: Costs) -> None:
    chunk = np.array(rows, np.int32)
    rounds = Rounds(chunk, costs)
    assert sorted(rounds.order.tolist()) == list(range(len(rows)))
    np.testing.assert_array_equal(rounds.order[rounds.place], np.arange(len(rows)))
    assert sorted(rounds.rows.tolist()) == sorted(set(rows))
    assert rounds.counts.tolist() == [rows.count(row) for row in rounds.rows.tolist()]
    assert rounds.counts.tolist() == sorted(rounds.counts.tolist(), reverse=True)
    taken: dict[int, list[int]] = {row: [] for row in rows}
    start = 0
    for width in rounds.widths:
        part = rounds.order[start : start + width]
        np.testing.assert_array_equal(chunk[part], rounds.rows[:width])
        for at, reading in zip(chunk[part].tolist(), part.tolist(), strict=True):
            taken[at].append(reading)
        start += width
    for rank, begin, stop in rounds.tails:
        assert begin == start
        row = int(rounds.rows[rank])
        part = rounds.order[begin:stop]
        assert set(chunk[part].tolist()) == {row}
        taken[row] += part.tolist()
        start = stop
    assert start == len(rows)
    assert all(readings == sorted(readings) for readings in taken.values())


def test_one_busy_sensor_among_many_is_a_tail() -> None:
    rows = np.concatenate([np.arange(100), np.zeros(5000, int)]).astype(np.int32)
    rounds = Rounds(rows, Costs(8, 20, 0.7))
    assert rounds.widths == [100]
    assert [tail.stop - tail.start for tail in rounds.tails] == [5000]


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 2**62)), max_size=100))
def test_sorting_groups_any_numbers_and_keeps_order(numbers: list[int]) -> None:
    by_row, segment, starts, counts, distinct = sort_by_row(np.array(numbers, np.int64))
    expected = sorted(range(len(numbers)), key=lambda i: (numbers[i], i))
    assert by_row.tolist() == expected
    assert distinct.tolist() == sorted(set(numbers))
    assert counts.tolist() == [numbers.count(row) for row in distinct.tolist()]
    assert [distinct.tolist()[s] for s in segment.tolist()] == [numbers[i] for i in expected]
    assert starts.tolist() == (np.cumsum(counts) - counts).tolist()


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_and_one_reading_are_chunks_too(n: int) -> None:
    rounds = Rounds(np.zeros(n, np.int32), Costs(1, 1, 1))
    assert len(rounds.order) == n
    assert sum(rounds.widths) + sum(tail.stop - tail.start for tail in rounds.tails) == n
