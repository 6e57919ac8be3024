"""aiokafka's fetcher, handing on chunks of messages: record batches in, `streams.records.Chunk` out.

`ChunkFetcher` is aiokafka's `Fetcher` whose store of fetched records swaps the iterator of the batch topics
for `ChunkedRecords`. What it must keep of the original, and how it is held to it, stands in
`docs/design/transport.md`.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiokafka
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException

from streams.records import Chunk

#: Bytes that a partition may return in one fetch: one chunk of JSON readings. More only costs memory. Where
#: messages hold many readings, a fetch of the second size is 12% faster (`python -m benchmarks.arrow`).
MAX_PARTITION_FETCH_BYTES = 512 << 10
MAX_LARGE_FETCH_BYTES = 1 << 20
#: Messages are large from this mean size on, in bytes.
LARGE_MESSAGE = 4096
#: How long the broker may hold a fetch that has nothing to give. A caught-up partition must not stall the
#: others, and the wait is over with the first byte anyway.
IDLE_WAIT_MS = 500


class ChunkLimits:
    """Bounds of a chunk and of the linger.

    Args:
        max_messages: messages in one chunk.
        max_bytes: bytes of keys and values in one chunk; a single larger message still makes a chunk.
        linger_ms: how long the broker may gather messages while data trickles in.
    """

    def __init__(self, max_messages: int = 4096, max_bytes: int = 4 << 20, linger_ms: float = 7) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.linger_ms = linger_ms
        #: Topics with a linger of their own. A fetch asks for all partitions of a broker, so the shortest
        #: one holds for all topics that a worker reads.
        self.linger_by_topic: dict[str, float] = {}
        #: What a partition may return in one fetch; follows the size of the messages seen.
        self.fetch_bytes = MAX_PARTITION_FETCH_BYTES


class ChunkedRecords(PartitionRecords):  # type: ignore[misc]
    """aiokafka's iterator over one partition's fetched record batches, yielding chunks.

    Chunks are contiguous: each begins at the offset after the last one's end, whatever compaction,
    transactions or control records have left out in between. A fetch that holds no message at all yields
    one empty chunk, so that positions move on.
    """

    #: The position: where the next fetch begins once all that was yielded is taken.
    next_fetch_offset: int

    def __init__(self, records: PartitionRecords, limits: ChunkLimits) -> None:
        self._limits = limits
        # where the walk through the batches is; the position follows it as chunks are yielded
        self._walked = records.next_fetch_offset
        super().__init__(
            records._tp,
            records._records,
            records._aborted_transactions,
            records.next_fetch_offset,
            None,
            None,
            records._check_crcs,
            records._isolation_level,
        )

    def _live_batches(self) -> Iterator[Any]:
        """Yield the record batches that hold messages for us; walk past the others."""
        records = self._records
        start = self._walked
        committed_only = self._isolation_level == READ_COMMITTED
        while records.has_next():
            batch = records.next_batch()
            if self._check_crcs and not batch.validate_crc():
                if self._walked > start:
                    return  # hand on what is sound; the next fetch begins here, and raises
                raise CorruptRecordException(f"Invalid CRC - {self._tp}")
            if committed_only and batch.producer_id is not None:
                self._consume_aborted_up_to(batch.base_offset)
                if batch.is_control_batch and self._contains_abort_marker(batch):
                    self._aborted_producers.discard(batch.producer_id)
                if batch.is_transactional and batch.producer_id in self._aborted_producers:
                    self._walked = batch.next_offset
                    continue
            if batch.is_control_batch:
                self._walked = batch.next_offset
                continue
            yield batch

    def _unpack_records(self) -> Iterator[Chunk]:
        # A trickle comes in batches of one message: so as little as can be is done for each batch.
        limit = self._limits.max_messages
        pending: list[Any] = []
        for batch in self._live_batches():
            records = list(batch)
            if records and records[0].offset < self._walked:
                # the fetch began inside this batch
                records = [record for record in records if record.offset >= self._walked]
            pending += records
            # the batch's own end, which compaction may have moved beyond its last message
            self._walked = batch.next_offset
            if len(pending) >= limit:
                full = len(pending) - len(pending) % limit
                end = pending[full].offset if full < len(pending) else self._walked
                yield from self._chunks(pending[:full], end)
                pending = pending[full:]
        yield from self._chunks(pending, self._walked)

    def _chunks(self, records: list[Any], end: int) -> Iterator[Chunk]:
        """Cut records into chunks that cover all offsets from the position up to `end`."""
        max_messages, max_bytes = self._limits.max_messages, self._limits.max_bytes
        start = 0
        while start < len(records) or self.next_fetch_offset < end:
            part = records[start : start + max_messages]
            values = [record.value for record in part]
            size = sum(map(len, filter(None, values)))
            large = size > LARGE_MESSAGE * len(part)
            self._limits.fetch_bytes = MAX_LARGE_FETCH_BYTES if large else MAX_PARTITION_FETCH_BYTES
            if size > max_bytes and len(part) > 1:
                part = part[: _fitting(values, max_bytes)]
                values = values[: len(part)]
            start += len(part)
            first, behind = self.next_fetch_offset, records[start].offset if start < len(records) else end
            headers = [record.headers for record in part]
            gapless = part and part[-1].offset - part[0].offset == len(part) - 1
            self.next_fetch_offset = behind
            yield Chunk(
                topic=self._tp.topic,
                partition=self._tp.partition,
                first_offset=first,
                last_offset=behind - 1,
                offsets=range(part[0].offset, part[-1].offset + 1) if gapless else [r.offset for r in part],
                timestamps_ms=[record.timestamp for record in part],
                keys=[record.key for record in part],
                values=values,
                headers=headers if any(headers) else [],
            )


def _fitting(values: list[bytes | None], room: int) -> int:
    """Count how many of the leading values fit into the room in bytes; at least one."""
    for count, value in enumerate(values):
        room -= len(value or b"")
        if room < 0:
            return max(count, 1)
    return len(values)


class _ChunkStore(collections.OrderedDict[Any, Any]):
    """What a fetcher has fetched and nobody has taken; batch topics come out as chunks."""

    def __init__(self, fetcher: ChunkFetcher) -> None:
        super().__init__()
        self._fetcher = fetcher

    def __setitem__(self, tp: Any, result: Any) -> None:
        if type(result) is FetchResult:
            records = result._partition_records
            self._fetcher.note_fetched(records._records.size_in_bytes())
            if self._fetcher.is_batch_topic(tp.topic):
                result._partition_records = ChunkedRecords(records, self._fetcher.limits)
                # never begun, it would keep itself and the fetched megabyte alive until a garbage collection
                records._records_iterator = None
        super().__setitem__(tp, result)


class ChunkFetcher(Fetcher):  # type: ignore[misc]
    """aiokafka's fetcher, with chunks for the batch topics and a linger."""

    #: A fetch of at least this many bytes is a backlog, and waits for nothing.
    BACKLOG_BYTES = 64 << 10

    def __init__(
        self, *args: Any, limits: ChunkLimits, is_batch_topic: Callable[[str], bool], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits
        self.is_batch_topic = is_batch_topic
        self._records = _ChunkStore(self)
        self._fetched_bytes = 0
        self._last_fetch = 0.0

    def note_fetched(self, size_bytes: int) -> None:
        """Count what the fetches since the last request brought; it decides over the linger."""
        self._fetched_bytes += size_bytes

    def _get_actions_per_node(self, assignment: Any) -> Any:
        now = time.monotonic()
        recent = now - self._last_fetch < 0.1
        trickling = recent and 0 < self._fetched_bytes < self.BACKLOG_BYTES
        linger_ms = self._linger_ms(assignment)
        if trickling and linger_ms:
            # the broker gathers: no timer and no wake-up of ours
            self._fetch_min_bytes = self.BACKLOG_BYTES
            self._fetch_max_wait_ms = max(1, round(linger_ms))
        else:
            self._fetch_min_bytes = 1
            self._fetch_max_wait_ms = IDLE_WAIT_MS
        self._max_partition_fetch_bytes = self.limits.fetch_bytes
        actions = super()._get_actions_per_node(assignment)
        if actions[0]:
            self._fetched_bytes = 0
            self._last_fetch = now
        return actions

    def _linger_ms(self, assignment: Any) -> float:
        by_topic, linger_ms = self.limits.linger_by_topic, self.limits.linger_ms
        if not by_topic:
            return linger_ms
        return min((by_topic.get(tp.topic, linger_ms) for tp in assignment.tps), default=linger_ms)


class ChunkKafkaConsumer(aiokafka.AIOKafkaConsumer):  # type: ignore[misc]
    """aiokafka's consumer on a `ChunkFetcher`."""

    _fetcher: Any

    def __init__(
        self, *topics: str, limits: ChunkLimits, is_batch_topic: Callable[[str], bool], **kwargs: Any
    ) -> None:
        super().__init__(*topics, **kwargs)
        self._limits = limits
        self._is_batch_topic = is_batch_topic

    async def start(self) -> None:
        """Connect and put the chunk fetcher in the place of the original."""
        await super().start()
        plain = self._fetcher
        await plain.close()
        self._fetcher = ChunkFetcher(
            self._client,
            self._subscription,
            fetch_min_bytes=1,
            fetch_max_bytes=self._fetch_max_bytes,
            fetch_max_wait_ms=IDLE_WAIT_MS,
            max_partition_fetch_bytes=self._max_partition_fetch_bytes,
            check_crcs=self._check_crcs,
            fetcher_timeout=self._consumer_timeout,
            retry_backoff_ms=self._retry_backoff_ms,
            auto_offset_reset=self._auto_offset_reset,
            isolation_level=self._isolation_level,
            client_rack=self._client_rack,
            limits=self._limits,
            is_batch_topic=self._is_batch_topic,
        )
