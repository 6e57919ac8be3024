"""Our iterator over fetched record batches against aiokafka's, message by message, on every kind of log.

The logs are built from real record batches by aiokafka's builder; compaction is played by rewriting a
batch's base offset and last offset delta as the log cleaner does.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.chunk_fetcher import ChunkedRecords, ChunkLimits
from streams.records import Chunk

TP = TopicPartition("sensors.test", 3)
ABORT = struct.pack(">HH", 0, 0)
COMMIT = struct.pack(">HH", 0, 1)


@dataclass
class Batch:
    """One record batch of a log: which of its `size` offsets still hold a message."""

    size: int
    kept: list[int] = field(default_factory=list)
    producer: int = -1
    control: bytes | None = None
    value_size: int = 5
    headers: bool = False


def build_log(batches: list[Batch], base: int = 0) -> tuple[bytes, int]:
    """Return the bytes of the log and the offset after its end."""
    log = b""
    for batch in batches:
        builder = DefaultRecordBatchBuilder(
            magic=2,
            compression_type=0,
            is_transactional=int(batch.producer >= 0),
            producer_id=batch.producer,
            producer_epoch=0,
            base_sequence=0,
            batch_size=1 << 20,
        )
        if batch.control is not None:
            builder.append(0, 1000, batch.control, b"\0" * 6, [])
            size = 1
        else:
            size = batch.size
            for delta in batch.kept:
                extra = [("n", b"%d" % delta)] if batch.headers and delta % 2 else []
                value = None if delta % 7 == 3 else b"%d/" % (base + delta) + b"x" * batch.value_size
                builder.append(delta, 1000 + base + delta, b"k%d" % delta, value, extra)
        data = bytearray(builder.build())
        struct.pack_into(">q", data, 0, base)
        struct.pack_into(">i", data, 23, size - 1)
        if batch.control is not None:
            (attributes,) = struct.unpack_from(">h", data, 21)
            struct.pack_into(">h", data, 21, attributes | 0x20)
        struct.pack_into(">I", data, 17, calc_crc32c(bytes(data[21:])))
        log += bytes(data)
        base += size
    return log, base


def iterator(
    log: bytes, fetch_offset: int, isolation: int, aborted: list[tuple[int, int]]
) -> PartitionRecords:
    return PartitionRecords(TP, MemoryRecords(log), list(aborted), fetch_offset, None, None, True, isolation)


def compare(
    batches: list[Batch],
    limits: ChunkLimits,
    fetch_offset: int = 0,
    isolation: int = READ_COMMITTED,
    aborted: list[tuple[int, int]] | None = None,
) -> list[Chunk]:
    log, _ = build_log(batches)
    expected_records = iterator(log, fetch_offset, isolation, aborted or [])
    expected = list(expected_records)
    ours = ChunkedRecords(iterator(log, fetch_offset, isolation, aborted or []), limits)
    position = fetch_offset
    chunks = []
    for chunk in ours:
        assert chunk.first_offset == position, "chunks are contiguous"
        position = ours.next_fetch_offset
        assert chunk.last_offset == position - 1
        assert len(chunk.values) <= limits.max_messages
        size = sum(len(value or b"") for value in chunk.values)
        assert size <= limits.max_bytes or len(chunk.values) == 1
        assert all(chunk.first_offset <= offset <= chunk.last_offset for offset in chunk.offsets)
        chunks.append(chunk)
    assert ours.next_fetch_offset == expected_records.next_fetch_offset
    flat = [
        (offset, ts, key, value, tuple(headers))
        for chunk in chunks
        for offset, ts, key, value, headers in zip(
            chunk.offsets,
            chunk.timestamps_ms,
            chunk.keys,
            chunk.values,
            chunk.headers or [()] * len(chunk.values),
            strict=True,
        )
    ]
    assert flat == [(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in expected]
    return chunks


def whole(size: int, **options: object) -> Batch:
    return Batch(size, list(range(size)), **options)  # type: ignore[arg-type]


def test_many_batches_become_one_chunk() -> None:
    chunks = compare([whole(3), whole(1), whole(10)], ChunkLimits())
    assert [len(chunk.values) for chunk in chunks] == [14]


def test_a_chunk_is_bounded_by_messages_and_bytes() -> None:
    assert [len(c.values) for c in compare([whole(10), whole(10)], ChunkLimits(max_messages=8))] == [8, 8, 4]
    compare([whole(10, value_size=100)], ChunkLimits(max_bytes=250))
    compare([whole(3, value_size=100)], ChunkLimits(max_bytes=10))


def test_compaction_gaps_stay_inside_the_chunks_range() -> None:
    batches = [Batch(10, [0, 9]), Batch(10, [4]), Batch(5, [])]
    chunks = compare(batches, ChunkLimits())
    assert (chunks[0].first_offset, chunks[-1].last_offset) == (0, 24)


def test_a_fetch_that_begins_inside_a_batch_skips_what_came_before() -> None:
    chunks = compare([whole(10), whole(2)], ChunkLimits(), fetch_offset=7)
    assert chunks[0].offsets[0] == 7


def test_aborted_transactions_are_skipped_and_their_offsets_counted() -> None:
    batches = [
        whole(3, producer=1),
        whole(2, producer=2),
        Batch(1, producer=1, control=ABORT),
        Batch(1, producer=2, control=COMMIT),
        whole(2, producer=1),
        Batch(1, producer=1, control=COMMIT),
    ]
    chunks = compare(batches, ChunkLimits(), aborted=[(1, 0)])
    assert [o for chunk in chunks for o in chunk.offsets] == [3, 4, 7, 8]
    assert chunks[-1].last_offset == 9
    compare(batches, ChunkLimits(), isolation=READ_UNCOMMITTED)


def test_a_log_end_of_control_records_alone_gives_an_empty_chunk() -> None:
    chunks = compare([Batch(1, producer=1, control=COMMIT)], ChunkLimits())
    assert [(c.first_offset, c.last_offset, c.values) for c in chunks] == [(0, 0, [])]


def test_a_damaged_batch_raises_only_when_nothing_sound_stands_before_it() -> None:
    log, _ = build_log([whole(3), whole(3)])
    damaged = bytearray(log)
    damaged[-1] ^= 0xFF
    ours = ChunkedRecords(iterator(bytes(damaged), 0, READ_COMMITTED, []), ChunkLimits())
    assert [list(chunk.offsets) for chunk in ours] == [[0, 1, 2]]
    assert ours.next_fetch_offset == 3
    again = ChunkedRecords(iterator(bytes(damaged[len(log) // 2 :]), 3, READ_COMMITTED, []), ChunkLimits())
    with pytest.raises(CorruptRecordException):
        next(again)


batch_strategy = st.one_of(
    st.builds(
        lambda size, kept, producer, value_size, headers: Batch(
            size, sorted({k % size for k in kept}), producer, None, value_size, headers
        ),
        st.integers(1, 12),
        st.lists(st.integers(0, 11), max_size=12),
        st.sampled_from([-1, 1, 2]),
        st.integers(0, 60),
        st.booleans(),
    ),
    st.builds(
        lambda producer, kind: Batch(1, producer=producer, control=kind),
        st.sampled_from([1, 2]),
        st.sampled_from([ABORT, COMMIT]),
    ),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(batch_strategy, min_size=1, max_size=8),
    st.integers(1, 20),
    st.integers(1, 300),
    st.integers(0, 10),
    st.sampled_from([READ_COMMITTED, READ_UNCOMMITTED]),
    st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(0, 40)), max_size=3),
)
def test_any_log_gives_the_same_messages_as_aiokafka(
    batches: list[Batch],
    max_messages: int,
    max_bytes: int,
    fetch_offset: int,
    isolation: int,
    aborted: list[tuple[int, int]],
) -> None:
    first = batches[0].size
    compare(batches, ChunkLimits(max_messages, max_bytes), min(fetch_offset, first - 1), isolation, aborted)
