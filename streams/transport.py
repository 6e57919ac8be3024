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
2. `ChunkConsumer` makes one Faust message of a chunk; the message's offset is the chunk's first. What may be
   committed is told by the agents (`InputPartition.committable`): the end of the last chunk that all of them
   have finished. An offset inside an unfinished chunk is never committed.
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
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, ClassVar, cast

import aiokafka
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.structs import TopicPartition
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as FaustConsumer
from faust.transport.drivers.aiokafka import Producer as FaustProducer
from faust.transport.drivers.aiokafka import Transport as FaustTransport
from faust.types import TP, ConsumerMessage
from mode import Service
from mode.utils.futures import maybe_async

from streams import metrics
from streams.chunk_fetcher import MAX_PARTITION_FETCH_BYTES, ChunkKafkaConsumer, ChunkLimits
from streams.errors import RetryLater
from streams.records import Chunk

# not the module's own name: under that, mode's services announce themselves, and a worker mutes it
log = logging.getLogger("polarstream.transport")


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


class ChunkConsumer(FaustConsumer):  # type: ignore[misc]
    """Faust's consumer, where one message is a chunk, and agents tell how far they are.

    Faust's own book of acknowledged offsets is not asked for input partitions: it also counts what an agent
    skipped because of a rebalance, or failed in. `InputPartition.committable` says what is done.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # where the next chunk of an input partition begins
        self._position: dict[TP, int] = {}
        # how often each partition was sought, now and when the records at hand were fetched
        self._seeks: collections.Counter[TP] = collections.Counter()
        self._fetched_after: collections.Counter[TP] = collections.Counter()

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

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        records = await super()._getmany(active_partitions, timeout)
        self._fetched_after = self._seeks.copy()
        return records

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """Yield (partition, message); the message of a batch topic is a chunk.

        The chunks of an input partition follow each other without a gap.
        """
        async for tp, message in super().getmany(timeout):
            chunk = message.value
            if type(chunk) is not Chunk:
                yield tp, message
            elif self._is_changelog_tp(tp):
                # recovery counts by the last offset, control records at the log's end included
                message.offset = chunk.last_offset
                yield tp, message
            elif self._seeks[tp] == self._fetched_after[tp]:
                position = self._position.get(tp, chunk.first_offset)
                if chunk.first_offset > position:
                    await self._explain_gap(tp, position, chunk.first_offset)
                    message.offset = chunk.first_offset = position
                self._position[tp] = chunk.last_offset + 1
                yield tp, message

    async def _explain_gap(self, tp: TP, position: int, first: int) -> None:
        """Count what the broker has deleted before it was read; any other gap ends the worker.

        Raises:
            RetryLater: the broker still has what was left out.
        """
        oldest = (await self.earliest_offsets(tp))[tp]
        if oldest <= position:
            raise RetryLater(f"{tp.topic}/{tp.partition} went on at offset {first} instead of {position}")
        metrics.EXPIRED.labels(tp.topic).inc(first - position)
        log.warning(
            "%s/%s: retention deleted offsets %s to %s before they were read: keep messages for longer "
            "(retention.ms, retention.bytes) or run more workers",
            tp.topic,
            tp.partition,
            position,
            first - 1,
        )

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Do nothing: offsets without a message lie inside the chunks."""

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> list[TP]:
        self._clean_unacked_messages()
        return list(self.app.checkpointer.partitions)

    def _new_offset(self, tp: TP) -> int | None:
        self._acked.pop(tp, None)
        self._acked_index.pop(tp, None)
        return cast("int | None", self.app.checkpointer.partitions[tp].committable())

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

    async def seek_to_committed(self) -> Mapping[TP, int | None]:
        """Seek the input partitions to the committed offsets, or where there is none to where a log begins.

        aiokafka leaves the position of a partition without a committed offset as it is, which may be behind
        messages that were fetched and dropped meanwhile.

        Returns:
            The committed offsets; None for changelogs, whose positions are recovery's affair.
        """
        consumer = self._thread._ensure_consumer()
        tps = [tp for tp in self.assignment() if not self._is_changelog_tp(tp)]
        committed: dict[TP, int | None] = dict(
            zip(
                tps,
                await asyncio.gather(*(consumer.committed(TopicPartition(*tp)) for tp in tps)),
                strict=True,
            )
        )
        new = [TopicPartition(*tp) for tp, offset in committed.items() if offset is None]
        latest = self.app.worker_config.start_from == "latest"
        origins = await (consumer.end_offsets if latest else consumer.beginning_offsets)(new) if new else {}
        # no await from here on: what the fetcher hands on afterwards comes from these positions
        assigned = self.assignment()
        for tp in tps:
            if tp not in assigned:
                continue
            offset = committed[tp]
            start = origins[TopicPartition(*tp)] if offset is None else offset
            consumer.seek(TopicPartition(*tp), start)
            self._seeks[tp] += 1
            self._position[tp] = start
            partition = self.app.checkpointer.partitions.get(tp)
            if partition is not None:
                partition.start_at(start)
        return {**dict.fromkeys(assigned), **committed}

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
