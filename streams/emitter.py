"""Sending whole chunks: record batches built in one go, without a call or a future for each message.

aiokafka's `send` costs 10 to 12 µs a message. Here a chunk's messages are appended to a record batch by its
C builder (0.3 µs each) and the batch is handed to the producer's accumulator as one thing with one future.

An `Emitter` belongs to one input partition and remembers the futures of what it sent, for the checkpoint.
`TransactionalEmitter` sends inside a transaction that the checkpoint ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import ProducerClosed
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import OffsetAndMetadata, RecordMetadata, TopicPartition

from streams.produce_request import JoiningSender

#: Bytes of one record batch; brokers take 1 MiB (`message.max.bytes`) by default, overhead included.
MAX_BATCH_BYTES = 900_000
#: Bytes that may be under way to the brokers before an agent has to wait, and before a checkpoint has to.
#: They have an account each: a checkpoint of much state would else hold the agents up. With 4 MiB the worker
#: slept for 15 to 25% of its time, waiting for one request of 3.6 MiB: 17% fewer readings a second
#: (`python -m benchmarks.throughput`); 16 MiB bring no more.
MAX_IN_FLIGHT_BYTES = 8 << 20
MAX_STATE_IN_FLIGHT_BYTES = 1 << 20

Headers = Sequence[tuple[str, bytes]]


class _RecordBatch(BatchBuilder):  # type: ignore[misc]
    """A batch builder that takes many messages in one call."""

    def extend(
        self,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[Headers] | None,
        start: int,
        timestamp_ms: int,
    ) -> int:
        """Append messages from `start` on until the batch is full; return the next message's number."""
        append = self._builder.append
        none: list[Any] = []
        messages = zip(range(start, len(values)), keys[start:], values[start:], strict=True)
        for number, key, value in messages:
            extra = list(headers[number]) if headers else none
            if append(number - start, timestamp_ms, key, value, extra) is None:
                break
        else:
            number = len(values)
        self._relative_offset = number - start
        self.close()
        return number


class BatchProducer(AIOKafkaProducer):  # type: ignore[misc]
    """aiokafka's idempotent producer, with an entrance for whole batches that never waits."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            enable_idempotence=True,
            acks="all",
            linger_ms=0,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=8 << 20,
            **options,
        )
        plain: Any = self._sender
        self._sender: Any = JoiningSender(
            self.client,
            acks=plain._acks,
            txn_manager=self._txn_manager,
            retry_backoff_ms=plain._retry_backoff * 1000,
            message_accumulator=self._message_accumulator,
            request_timeout_ms=plain._request_timeout_ms,
        )
        self._known_topics: set[str] = set()

    async def append_batches(
        self,
        topic: str,
        partition: int,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[Headers] | None = None,
    ) -> list[tuple[asyncio.Future[RecordMetadata], int]]:
        """Queue messages for one partition, in order.

        Returns:
            For each record batch its future and its size in bytes.
        """
        if topic not in self._known_topics:
            await self.client._wait_on_metadata(topic)
            self._known_topics.add(topic)
        accumulator = self._message_accumulator
        if accumulator._closed:
            raise ProducerClosed
        if accumulator._exception is not None:
            raise accumulator._exception
        manager = self._txn_manager
        transactional = manager is not None and manager.transactional_id is not None
        tp = TopicPartition(topic, partition)
        timestamp_ms = time.time_ns() // 1_000_000
        sent = []
        start = 0
        while start < len(values):
            batch = _RecordBatch(MAX_BATCH_BYTES, 0, is_transactional=transactional)
            start = batch.extend(keys, values, headers, start, timestamp_ms)
            size = batch.size()
            sent.append((accumulator._append_batch(batch, tp).future, size))
        return sent


class InFlight:
    """Bytes under way to the brokers, shared by the emitters of a process."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._room = asyncio.Event()
        self._room.set()

    def add(self, future: asyncio.Future[Any], size: int) -> None:
        """Count a batch until its future is done."""
        self.bytes += size
        if self.bytes >= self.limit_bytes:
            self._room.clear()
        future.add_done_callback(lambda _: self._done(size))

    def _done(self, size: int) -> None:
        self.bytes -= size
        if self.bytes < self.limit_bytes:
            self._room.set()

    async def wait_for_room(self) -> None:
        """Wait until another batch may be sent."""
        await self._room.wait()


class Emitter:
    """Sends what one input partition gives rise to; delivery at least once.

    Args:
        producer: a started producer, which may serve many emitters.
        outputs: the process's account of outputs under way.
        state: the same for state.
    """

    def __init__(self, producer: BatchProducer, outputs: InFlight, state: InFlight) -> None:
        self.producer = producer
        self._outputs = outputs
        self._state = state
        self._pending: list[asyncio.Future[RecordMetadata]] = []

    async def emit(
        self,
        topic: str,
        partition: int,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[Headers] | None = None,
    ) -> None:
        """Send outputs in order; returns once they are queued, not once they are stored."""
        if values:
            self._pending += await self._send(self._outputs, topic, partition, keys, values, headers)

    async def emit_one(self, topic: str, partition: int, key: bytes | None, value: bytes) -> None:
        """Send one output by itself, at least once.

        What comes while a request for the partition is under way leaves in one batch with the next one;
        what `emit` sends are batches of their own, one after the other.
        """
        await self._outputs.wait_for_room()
        future = await self.producer.send(topic, value, key=key, partition=partition)
        self._outputs.add(future, len(value))
        self._pending.append(future)

    async def send_state(
        self, topic: str, partition: int, items: Sequence[tuple[bytes, bytes]]
    ) -> list[asyncio.Future[RecordMetadata]]:
        """Send (key, value) in order, a bit at a time; returns a future for each record batch."""
        futures: list[asyncio.Future[RecordMetadata]] = []
        start = size = 0
        for at, (_, value) in enumerate(items):
            size += len(value)
            if size >= MAX_STATE_IN_FLIGHT_BYTES // 2 or at == len(items) - 1:
                keys, values = zip(*items[start : at + 1], strict=True)
                futures += await self._send(self._state, topic, partition, keys, values)
                start, size = at + 1, 0
        return futures

    async def _send(
        self,
        account: InFlight,
        topic: str,
        partition: int,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[Headers] | None = None,
    ) -> list[asyncio.Future[RecordMetadata]]:
        await account.wait_for_room()
        futures = []
        for future, size in await self.producer.append_batches(topic, partition, keys, values, headers):
            account.add(future, size)
            futures.append(future)
        return futures

    def take_pending(self) -> list[asyncio.Future[RecordMetadata]]:
        """Take the futures of all outputs so far; a checkpoint waits for them."""
        pending, self._pending = self._pending, []
        return pending

    async def commit(self, offsets: Mapping[TopicPartition, int], group: Any) -> bool:
        """Tell whether the emitter has committed the offsets itself: this one has not."""
        return False

    async def close(self) -> None:
        """Give up what is this emitter's own."""


class TransactionalEmitter(Emitter):
    """Sends inside a transaction, which `commit` ends together with the offsets of the input.

    One emitter, one producer and one transactional id an input partition: who starts the producer anew
    fences all before it, and aborts what they left open.
    """

    async def _send(self, *what: Any) -> list[asyncio.Future[RecordMetadata]]:
        await self._begin()
        return await super()._send(*what)

    async def _begin(self) -> None:
        if not self.producer._txn_manager.is_in_transaction():
            await self.producer.begin_transaction()

    async def commit(self, offsets: Mapping[TopicPartition, int], group: Any) -> bool:
        """Commit outputs, state and offsets in one transaction.

        Args:
            offsets: next offset to read, by input partition.
            group: id of the consumer group.
        """
        await self._begin()
        ends = {tp: OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        await self.producer.send_offsets_to_transaction(ends, group)
        await self.producer.commit_transaction()
        return True

    async def close(self) -> None:
        """Stop the producer; a transaction that is still open is aborted by the next owner."""
        await self.producer.stop()
