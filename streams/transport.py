"""A Faust transport that hands on chunks of messages instead of messages.

Plain Faust spends some 400 µs on each message, most of it in machinery that runs once a message: a
`ConsumerRecord` in aiokafka's fetcher, two tasks in `Consumer._drain_messages`, the conductor, the stream
iterator, the sensors. Here the same machinery runs once a *chunk*: up to some thousand messages of one
partition that lie next to each other in the log. Agents stay ordinary Faust agents.

How it works, from the socket to the agent:

1. `ChunkFetcher` (`streams.chunk_fetcher`) is aiokafka's `Fetcher` whose store of fetched records swaps
   the iterator of the batch topics for `ChunkedRecords`: it walks the record batches with the same rules
   (CRC, aborted transactions, control batches, the position after compaction) and yields one `Chunk` where
   the original yields one record for each message. It also lingers: while data trickles in, the broker is
   asked to gather for some milliseconds, so that a chunk is worth its overhead; a caught-up consumer of an
   idle topic asks for the first byte, at once.
2. `ChunkConsumer` makes one Faust message of a chunk. The message's offset is the chunk's first, and the
   ranges of the chunks in flight are kept: an offset is committable once every chunk before it is
   acknowledged, so that no offset inside an unfinished chunk is ever committed.
3. `ChunkTopic.decode` turns the chunk into what the agent gets (`streams.topics`).

The consumer runs in the application's own event loop and not, as Faust's does, in a thread of its own: one
hand-over from thread to thread costs as much as decoding hundreds of readings. So no agent may block the
loop for longer than the session timeout; compute runs in chunks of milliseconds or on owned threads.

aiokafka's and Faust's insides are subclassed, not patched; `tests/contract` compares with aiokafka's
`getmany` message by message on every kind of log.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, ClassVar, cast

import aiokafka
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, ensure_TPset
from faust.transport.drivers.aiokafka import Consumer as FaustConsumer
from faust.transport.drivers.aiokafka import Producer as FaustProducer
from faust.transport.drivers.aiokafka import Transport as FaustTransport
from faust.types import TP, ConsumerMessage
from mode import Service
from mode.utils.futures import maybe_async

from streams.chunk_fetcher import MAX_PARTITION_FETCH_BYTES, ChunkKafkaConsumer, ChunkLimits
from streams.records import Chunk


class InlineConsumerThread(AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's consumer "thread" on the application's own event loop."""

    abstract: ClassVar[bool] = False
    wait_for_shutdown = False

    def __init__(self, consumer: ChunkConsumer, **kwargs: Any) -> None:
        super().__init__(consumer, thread_loop=asyncio.get_event_loop(), **kwargs)

    # what ServiceThread does by threads, Service does by tasks
    maybe_start = Service.maybe_start
    start = Service.start
    crash = Service.crash
    set_shutdown = Service.set_shutdown
    _stopped_set = Service._stopped_set
    _stop_children = Service._stop_children
    _stop_futures = Service._stop_futures
    _stop_exit_stacks = Service._stop_exit_stacks
    _new_shutdown_event = Service._new_shutdown_event

    async def stop(self) -> None:
        """Stop the service and close the Kafka consumer."""
        await Service.stop(self)

    async def on_stop(self) -> None:
        """Leave the group and close the connections."""
        if self._consumer is not None:
            await self._consumer.stop()

    async def call_thread(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call at once: there is no other thread."""
        return await maybe_async(fun(*args, **kwargs))

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf = self.app.conf
        self._assignor = (
            self.app.assignor if self.app.tables.changelog_topics else RoundRobinPartitionAssignor
        )
        chunk_transport = cast("ChunkTransport", transport)
        return ChunkKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset=conf.consumer_auto_offset_reset,
            max_poll_records=None,
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 300) * 1000),
            max_partition_fetch_bytes=MAX_PARTITION_FETCH_BYTES,
            check_crcs=conf.broker_check_crcs,
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            # a zombie's or a killed worker's unfinished transaction is nobody's business
            isolation_level="read_committed",
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
            limits=chunk_transport.limits,
            is_batch_topic=chunk_transport.is_batch_topic,
            **chunk_transport.client_options,
        )

    async def _highwaters(self, partitions: Any) -> Mapping[TP, int]:
        # end_offsets asks the broker, and under read_committed gives the last stable offset
        consumer = self._ensure_consumer()
        return cast(Mapping[TP, int], await consumer.end_offsets(partitions))

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing: lag and the age of the last checkpoint are metrics of ours."""

    def verify_recovery_event_path(self, now: float, tp: TP) -> None:
        """Do nothing, likewise."""


class _ChunkRange:
    """The offsets of one chunk in flight."""

    __slots__ = ("first", "last")

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last


class ChunkConsumer(FaustConsumer):  # type: ignore[misc]
    """Faust's consumer, where one message is a chunk and an acknowledgement counts for its whole range."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ranges: dict[TP, collections.deque[_ChunkRange]] = collections.defaultdict(collections.deque)

    def _new_consumer_thread(self) -> InlineConsumerThread:
        return InlineConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if type(record) is not Chunk:
            return super()._to_message(tp, record)
        return ConsumerMessage(
            record.topic,
            record.partition,
            record.first_offset,
            record.timestamps_ms[-1] / 1000 if record.timestamps_ms else 0.0,
            0,
            None,
            None,
            record,
            None,
            0,
            0,
            tp,
            # without it the stream iterator drops the event silently
            generation_id=self.app.consumer_generation_id,
        )

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """Yield (partition, message); the message of a batch topic is a chunk."""
        last_seen = self._read_offset
        async for tp, message in super().getmany(timeout):
            chunk = message.value
            if type(chunk) is Chunk and not self._is_changelog_tp(tp):
                seen = last_seen[tp]
                if seen is not None and chunk.first_offset < seen:
                    continue  # fetched before a seek
                self._ranges[tp].append(_ChunkRange(chunk.first_offset, chunk.last_offset))
                if not chunk.values:
                    # control records or an aborted transaction only: nothing to do, so it is done
                    self._acked[tp].append(chunk.first_offset)
                    self._acked_index[tp].add(chunk.first_offset)
                    last_seen[tp] = chunk.first_offset
                    continue
            elif type(chunk) is Chunk:
                # recovery counts by the last offset, control records at the log's end included
                message.offset = chunk.last_offset
            yield tp, message

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        # gaps of a batch topic lie inside its chunks' ranges
        if tp not in self._ranges:
            await super()._add_gap(tp, offset_from, offset_to)

    def _new_offset(self, tp: TP) -> int | None:
        if tp not in self._ranges:
            return cast("int | None", super()._new_offset(tp))
        ranges = self._ranges[tp]
        acked = self._acked_index[tp]
        offset = None
        while ranges and ranges[0].first in acked:
            chunk = ranges.popleft()
            acked.discard(chunk.first)
            offset = chunk.last + 1
        if offset is not None:
            self._acked[tp] = list(acked)
        return offset

    def forget(self, tps: Any) -> None:
        """Drop what is known of chunks in flight, because they will be fetched again."""
        for tp in ensure_TPset(tps):
            partition = self.app.checkpointer.partitions.get(tp)
            if partition is not None:
                partition.rewind()
            self._ranges.pop(tp, None)
            self._acked.pop(tp, None)
            self._acked_index.pop(tp, None)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Make the producers of the assigned partitions before their state is recovered."""
        await self.app.open_partitions(assigned)
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Make a last checkpoint of the partitions and drop them."""
        if not self.app.should_stop and self.assignment():
            # Faust's own handling forgets what is acknowledged before it commits; so this comes first
            self.stop_flow()
            self.app.flow_control.suspend()
            self.app.flow_control.clear()
            await self.wait_empty()
        await super().on_partitions_revoked(revoked)
        await self.app.close_partitions(revoked)
        self.forget(revoked)

    async def perform_seek(self) -> None:
        """Seek to the committed offsets; what was in flight comes again."""
        await super().perform_seek()
        self.forget(self.assignment())

    async def seek(self, partition: TP, offset: int) -> None:
        """Seek one partition; what was in flight of it comes again."""
        await super().seek(partition, offset)
        self.forget([partition])

    @Service.task  # type: ignore[untyped-decorator]
    async def _commit_handler(self) -> None:
        checkpointer = self.app.checkpointer
        while not self.should_stop:
            await self.sleep(checkpointer.pause_s(self.commit_interval))
            if not self.should_stop:
                await self.commit()

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        assignment = self.assignment()
        owned = {tp: offset for tp, offset in offsets.items() if tp in assignment}
        if not owned:
            return False
        done = await self.app.commit_checkpoint(owned)
        if done:
            self._committed_offset.update(owned)
            self.app.monitor.on_tp_commit(owned)
        return bool(done)


class ChunkProducer(FaustProducer):  # type: ignore[misc]
    """Faust's own producer, for what Faust itself sends, reaching the brokers as everything else does."""

    def _settings_auth(self) -> Mapping[str, Any]:
        # they come last, so they win over the addresses that Faust works out
        return cast("ChunkTransport", self.transport).client_options


class ChunkTransport(FaustTransport):  # type: ignore[misc]
    """Faust's aiokafka transport with the chunk consumer.

    Args:
        client_options: what every aiokafka client needs to reach the brokers (servers, TLS, SASL).
        limits: bounds of a chunk.
    """

    Consumer: ClassVar[type[ChunkConsumer]] = ChunkConsumer
    Producer: ClassVar[type[ChunkProducer]] = ChunkProducer

    def __init__(
        self, *args: Any, client_options: Mapping[str, Any], limits: ChunkLimits, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.client_options = dict(client_options)
        self.limits = limits
        self.batch_topics: set[str] = set()

    def is_batch_topic(self, topic: str) -> bool:
        """Tell whether the messages of a topic come as chunks: batch topics and all changelogs do."""
        return topic in self.batch_topics or topic in self.app.tables.changelog_topics
