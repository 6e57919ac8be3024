"""State in shards: what is written is what comes back, and no reading is applied twice."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streams.state import BLOB_PART_BYTES, BlobState, SensorState, last_offset

SUM = np.dtype([("sum", "<f8"), ("n", "<i8")])


def new_state(fingerprint: str = "f", rows: int = 4) -> SensorState:
    state = SensorState("test", fingerprint, {"a": lambda n: np.zeros(n, SUM)})
    state.shard_rows = rows  # small shards, so that a few sensors fill several
    return state


def apply(state: SensorState, sensors: list[str], offsets: NDArray[np.int64]) -> int:
    """Count readings as an agent does; returns how many were new."""
    rows = state.locate(sensors)
    fresh = state.fresh(rows, offsets)
    if fresh is not None:
        rows = rows[fresh]
    np.add.at(state.rows["a"]["n"], rows, 1)
    if len(rows):
        state.touch(rows, int(offsets[-1]))
    return len(rows)


def counts(state: SensorState) -> dict[str, int]:
    return {sensor: int(state.rows["a"]["n"][row]) for sensor, row in state.index.items()}


def test_only_shards_that_changed_are_written() -> None:
    state = new_state()
    apply(state, [f"s{i}" for i in range(12)], np.arange(12))
    assert len(state.snapshot()) == 3
    assert state.snapshot() == []
    apply(state, ["s5"], np.array([12]))
    ((key, value),) = state.snapshot()
    assert key == b"rows/test/1"
    assert last_offset(value) == 12


def test_another_fingerprint_drops_the_rows_and_says_so() -> None:
    state = new_state()
    apply(state, ["a"], np.array([0]))
    other = new_state("g")
    other.restore(dict(state.snapshot()))
    assert (len(other), other.dropped) == (0, 1)


def test_agents_of_one_changelog_do_not_mix() -> None:
    state = new_state()
    apply(state, ["a"], np.array([0]))
    other = SensorState("other", "f", {"a": lambda n: np.zeros(n, SUM)})
    other.restore(dict(state.snapshot()))
    assert len(other) == 0


def test_rows_of_much_state_make_smaller_shards() -> None:
    wide = np.dtype([("x", "<f8", (4096,))])
    state = SensorState("test", "f", {"a": lambda n: np.zeros(n, wide)})
    state.locate(["a", "b"])
    state.touch(np.array([0, 1], np.int32), 1)
    assert all(len(value) < 300_000 for _, value in state.snapshot())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=120),
    st.lists(st.integers(1, 12), min_size=1, max_size=30),
    st.integers(0, 29),
    st.data(),
)
def test_a_crash_at_any_point_of_a_checkpoint_applies_every_reading_once(
    sensors: list[int], cuts: list[int], crash: int, data: st.DataObject
) -> None:
    """Checkpoints after every chunk; one of them breaks off with any subset of its shards written."""
    names = [f"s{sensor}" for sensor in sensors]
    changelog: dict[bytes, bytes] = {}
    committed = 0
    state, start, number = new_state(), 0, 0
    while start < len(names):
        stop = min(len(names), start + cuts[number % len(cuts)])
        apply(state, names[start:stop], np.arange(start, stop))
        changes = state.snapshot()
        if number == crash:
            written = data.draw(st.sets(st.sampled_from([key for key, _ in changes]))) if changes else set()
            changelog |= {key: value for key, value in changes if key in written}
            state = new_state()
            state.restore(changelog)
            start, number = committed, number + 1
            continue
        changelog |= dict(changes)
        start = committed = stop
        number += 1
    expected = {name: names.count(name) for name in names}
    assert counts(state) == expected
    again = new_state()
    again.restore(changelog | dict(state.snapshot()))
    assert counts(again) == expected


def test_a_blob_comes_back_in_its_newest_complete_form() -> None:
    blob = BlobState("windows", "f")
    first, second = b"1" * (BLOB_PART_BYTES + 5), b"2" * (2 * BLOB_PART_BYTES)
    changelog = dict(blob.dump(first, 10))
    assert BlobState("windows", "f").load(changelog) == (first, 10)
    torn = blob.dump(second, 20)
    assert BlobState("windows", "f").load(changelog | dict(torn[:1])) == (first, 10)
    assert BlobState("windows", "f").load(changelog | dict(torn)) == (second, 20)
    assert BlobState("windows", "other").load(changelog) is None
    assert BlobState("else", "f").load(changelog) is None


def test_a_restored_blob_overwrites_its_older_slot() -> None:
    blob = BlobState("x", "f")
    changelog = dict(blob.dump(b"a", 1)) | dict(blob.dump(b"b", 2))
    again = BlobState("x", "f")
    assert again.load(changelog) == (b"b", 2)
    torn = again.dump(b"c" * (BLOB_PART_BYTES + 1), 3)[:1]
    assert BlobState("x", "f").load(changelog | dict(torn)) == (b"b", 2)


def test_an_empty_blob_is_kept() -> None:
    assert BlobState("x", "f").load(dict(BlobState("x", "f").dump(b"", 7))) == (b"", 7)
