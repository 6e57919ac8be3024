"""Lost and duplicated messages by the publishers' numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.records import Chunk
from streams.sequences import MAX_GAPS, MAX_PRODUCERS, SequenceTracker


def chunk(marks: list[bytes | None]) -> Chunk:
    n = len(marks)
    headers = [() if mark is None else (("ps-seq", mark),) for mark in marks]
    return Chunk("t", 0, 0, n, list(range(n)), [0] * n, [None] * n, [b""] * n, headers)


def marks(*numbers: int, producer: bytes = b"p") -> list[bytes | None]:
    return [b"%b:%d" % (producer, n) for n in numbers]


def test_unbroken_numbers_are_neither_lost_nor_duplicated() -> None:
    tracker = SequenceTracker()
    assert tracker.observe(chunk(marks(0, 1, 2))) == (0, 0)
    assert tracker.observe(chunk(marks(3, 4))) == (0, 0)


def test_skipped_number_is_lost() -> None:
    tracker = SequenceTracker()
    assert tracker.observe(chunk(marks(0, 1, 5))) == (3, 0)
    assert tracker.observe(chunk(marks(8))) == (2, 0)


def test_repeated_number_is_duplicated() -> None:
    tracker = SequenceTracker()
    assert tracker.observe(chunk(marks(0, 1, 1, 0, 2))) == (0, 2)
    assert tracker.observe(chunk(marks(2))) == (0, 1)


def test_late_number_is_neither() -> None:
    tracker = SequenceTracker()
    assert tracker.observe(chunk(marks(0, 3))) == (2, 0)
    assert tracker.observe(chunk(marks(2, 1, 2))) == (0, 1)
    assert tracker.late == 2


def test_first_number_seen_is_where_a_producer_begins() -> None:
    assert SequenceTracker().observe(chunk(marks(500, 501))) == (0, 0)


def test_producers_are_counted_apart() -> None:
    mixed = [b"a:0", b"b:7", b"a:1", b"b:9", b"a:1"]
    assert SequenceTracker().observe(chunk(list(mixed))) == (1, 1)


@pytest.mark.parametrize(
    "other", [None, b"", b"p", b"p:", b"p:x", b":", b"p:-1", b"p:1.5", b"p:" + b"9" * 40, b"\xff:,1"]
)
def test_message_without_a_proper_mark_is_passed_over(other: bytes | None) -> None:
    tracker = SequenceTracker()
    assert tracker.observe(chunk([*marks(0), other, *marks(1, 3)])) == (1, 0)


def test_mark_among_other_headers_is_found() -> None:
    tracker = SequenceTracker()
    given_headers = [[("x", b"1"), ("ps-seq", b"p:0")], [("ps-seq", b"p:2"), ("x", b"")]]
    assert tracker.observe(Chunk("t", 0, 0, 1, [0, 1], [0, 0], [None] * 2, [b""] * 2, given_headers)) == (
        1,
        0,
    )


def test_producer_id_may_hold_colons() -> None:
    tracker = SequenceTracker()
    assert tracker.observe(chunk(marks(0, 2, producer=b"host:1:x"))) == (1, 0)


def test_chunk_without_headers_costs_nothing() -> None:
    assert SequenceTracker().observe(Chunk("t", 0, 0, 0, [0], [0], [None], [b""])) == (0, 0)


def test_memory_is_bounded() -> None:
    tracker = SequenceTracker()
    for number in range(MAX_PRODUCERS + 500):
        tracker.observe(chunk(marks(0, producer=b"p%d" % number)))
    tracker.observe(chunk(marks(*range(0, 4 * MAX_GAPS, 2))))
    assert len(tracker.snapshot()) < 40_000


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b:c"]), st.integers(0, 12)), max_size=40), st.integers(0, 40)
)
def test_any_cut_and_restart_count_the_same(pairs: list[tuple[bytes, int]], cut: int) -> None:
    all_marks: list[bytes | None] = [b"%b:%d" % pair for pair in pairs]
    whole = SequenceTracker().observe(chunk(all_marks))
    first = SequenceTracker()
    before = first.observe(chunk(all_marks[:cut]))
    second = SequenceTracker()
    second.restore(first.snapshot())
    after = second.observe(chunk(all_marks[cut:]))
    assert (before[0] + after[0], before[1] + after[1]) == whole


def test_damaged_snapshot_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\w"):
        SequenceTracker().restore(b"\xc1")
