"""The Faust application of a worker: chunk transport, checkpoints, one emitter an input partition."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import faust
import faust.tables
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP
from yarl import URL

from streams import metrics
from streams.changelog import ChangelogTable
from streams.checkpoint import Checkpointer, InputPartition
from streams.chunk_fetcher import ChunkLimits
from streams.config import FrameStreamConfig, KafkaConfig, RequestsConfig, StreamConfig, WorkerConfig
from streams.emitter import (
    MAX_IN_FLIGHT_BYTES,
    MAX_STATE_IN_FLIGHT_BYTES,
    BatchProducer,
    Emitter,
    InFlight,
    TransactionalEmitter,
)
from streams.frames import FrameBatch
from streams.kafka import client_options
from streams.records import ReadingBatch
from streams.requests import RequestBatch
from streams.topics import FrameTopic, ReadingTopic, RequestTopic
from streams.transport import ChunkTransport

log = logging.getLogger(__name__)

#: Chunks that an agent's queue may hold; the fetcher waits beyond that.
QUEUED_CHUNKS = 4
#: Chunks of different partitions that one agent may have under way, exactly once.
MAX_ACTORS = 2
#: How long the broker may take over an answer, before it counts as gone.
PROBE_S = 5.0
#: A transaction that its worker leaves open is aborted by the broker after this time at the latest.
TRANSACTION_TIMEOUT_MS = 60_000


class PromptTableManager(faust.tables.TableManager):  # type: ignore[misc]
    """Faust's table manager without the second that it waits for tables to be declared: ours are."""

    async def on_start(self) -> None:
        """Register the tables and start recovery."""
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


class StreamApp(faust.App):  # type: ignore[misc]
    """Faust with our transport and checkpoints; agents are declared on it as on any Faust app.

    Args:
        app_id: consumer group and prefix of the changelogs.
        kafka: how the brokers are reached.
        worker: settings of the worker.
        instance_id: name of this worker, the same after each restart and unique in the group: a worker that
            is started again then takes its partitions back at once.
        data_dir: folder for Faust's own files.
        on_new_partitions: makes the outputs follow inputs that have grown, before the first message of a new
            partition is read; returns the partitions of the inputs.
    """

    def __init__(
        self,
        app_id: str,
        kafka: KafkaConfig,
        worker: WorkerConfig,
        instance_id: str,
        data_dir: str,
        on_new_partitions: Callable[[], Awaitable[Mapping[str, int]]],
    ) -> None:
        self._kafka_options = client_options(kafka)
        self._on_new_partitions = on_new_partitions
        #: Partitions of the input topics, as far as the outputs follow them.
        self.input_partitions: Mapping[str, int] = {}
        self.worker_config = worker
        self.exactly_once = worker.delivery == "exactly_once"
        self._outputs = InFlight(MAX_IN_FLIGHT_BYTES)
        self._state = InFlight(MAX_STATE_IN_FLIGHT_BYTES)
        self._shared_producer: BatchProducer | None = None
        self._tables_by_topic: dict[str, ChangelogTable] = {}
        self._limits = ChunkLimits(worker.chunk_max_messages, worker.chunk_max_bytes, worker.linger_ms)
        self._batch_topics: set[str] = set()
        session_s = worker.session_timeout_ms / 1000
        super().__init__(
            app_id,
            broker=[URL(f"kafka://{server}") for server in kafka.bootstrap_servers],
            broker_request_timeout=max(kafka.request_timeout_ms / 1000, session_s + 1),
            broker_session_timeout=session_s,
            broker_rebalance_timeout=max(session_s, 30.0),
            broker_heartbeat_interval=max(session_s / 5, 0.3),
            broker_commit_interval=worker.checkpoint_s,
            broker_max_poll_interval=300.0,
            # where a partition without a committed offset begins is up to `ChunkConsumer.seek_to_committed`
            consumer_auto_offset_reset="earliest",
            consumer_group_instance_id=instance_id,
            # short enough to notice that a topic has got more partitions
            consumer_metadata_max_age_ms=10_000,
            # the assignor knows workers by their URL and asserts that a worker keeps it
            canonical_url=URL(f"http://{instance_id}"),
            datadir=data_dir,
            store="memory://",
            stream_buffer_maxsize=QUEUED_CHUNKS,
            stream_recovery_delay=0.0,
            stream_wait_empty=True,
            TableManager=PromptTableManager,
            table_standby_replicas=worker.standby_replicas,
            topic_disable_leader=True,
            topic_allow_declare=True,
            topic_replication_factor=1,
            web_enabled=False,
            worker_redirect_stdouts=False,
        )
        self.checkpointer = Checkpointer(app_id, self._commit_offsets)
        #: Called now and then, with the wall clock in seconds since 1970: for what no message brings about.
        self.between_chunks: list[Callable[[float], Awaitable[None]]] = []

    # -- declaring

    def reading_topic(self, stream: StreamConfig, table: ChangelogTable) -> ReadingTopic:
        """Declare the input topic of a stream, whose agents keep their state in the table."""
        self._batch_topics.add(stream.topic)
        self._tables_by_topic[stream.topic] = table
        return ReadingTopic(self, stream=stream)

    def frame_topic(self, stream: FrameStreamConfig, table: ChangelogTable) -> FrameTopic:
        """Declare the input topic of a stream of frames, whose agent keeps its state in the table."""
        self._batch_topics.add(stream.topic)
        self._tables_by_topic[stream.topic] = table
        return FrameTopic(self, stream=stream)

    def request_topic(self, requests: RequestsConfig, table: ChangelogTable) -> RequestTopic:
        """Declare the topic of requests; the table keeps nothing, as requests leave no state."""
        self._batch_topics.add(requests.topic)
        self._tables_by_topic[requests.topic] = table
        self._limits.linger_by_topic[requests.topic] = requests.linger_ms
        return RequestTopic(self, stream=requests)

    def changelog_table(self, name: str, partitions: int) -> ChangelogTable:
        """Declare a table of state with as many partitions as the input topic."""
        table = ChangelogTable(self, name=name, partitions=partitions)
        self.tables.add(table)
        return table

    def actors(self, stream: StreamConfig) -> int:
        """How many chunks of a stream an agent may have under way at a time.

        Exactly once, a partition stands still while its transaction is committed; meanwhile the agent's
        other actors go on with other partitions. They take turns by the partition's lock, first come first
        served. At least once nothing stands still, and one actor is enough.
        """
        return min(stream.partitions, MAX_ACTORS) if self.exactly_once else 1

    def _new_transport(self) -> ChunkTransport:
        transport = ChunkTransport(
            self.conf.broker_consumer, self, client_options=self._kafka_options, limits=self._limits
        )
        transport.batch_topics = self._batch_topics
        return transport

    def _new_producer_transport(self) -> ChunkTransport:
        return self._new_transport()

    # -- input partitions

    async def open_partitions(self, assigned: set[TP]) -> None:
        """Make the emitters of newly assigned input partitions.

        It comes before recovery: a producer that starts aborts the transaction that its killed predecessor
        left open, and only then does the changelog end where the last checkpoint ended.
        """
        metrics.REBALANCES.inc()
        if any(tp.partition >= self.input_partitions.get(tp.topic, tp.partition + 1) for tp in assigned):
            self.input_partitions = await self._on_new_partitions()
        new = [
            tp
            for tp in assigned
            if tp.topic in self._tables_by_topic
            and tp not in self.checkpointer.partitions
            and not self.assignor.is_standby(tp)
        ]
        emitters = await asyncio.gather(*(self._new_emitter(tp) for tp in new))
        for tp, emitter in zip(new, emitters, strict=True):
            agents = [name for name, agent in self.agents.items() if tp.topic in agent.get_topic_names()]
            partition = InputPartition(tp, self._tables_by_topic[tp.topic], emitter, agents, self.crash)
            self.checkpointer.partitions[tp] = partition
        metrics.PARTITIONS.set(len(self.checkpointer.partitions))

    async def close_partitions(self, revoked: set[TP]) -> None:
        """Drop the state and the emitters of revoked partitions; their last checkpoint is made."""
        gone = [self.checkpointer.partitions.pop(tp) for tp in revoked if tp in self.checkpointer.partitions]
        for partition in gone:
            partition.close()
            metrics.LAG.remove(partition.tp.topic, str(partition.tp.partition))
        await asyncio.gather(*(partition.emitter.close() for partition in gone))
        metrics.PARTITIONS.set(len(self.checkpointer.partitions))

    async def _new_emitter(self, tp: TP) -> Emitter:
        if self.exactly_once:
            producer = BatchProducer(
                transactional_id=f"{self.conf.id}-{tp.topic}-{tp.partition}",
                transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
                **self._kafka_options,
            )
            await producer.start()
            return TransactionalEmitter(producer, self._outputs, self._state)
        if self._shared_producer is None:
            self._shared_producer = BatchProducer(**self._kafka_options)
            await self._shared_producer.start()
        return Emitter(self._shared_producer, self._outputs, self._state)

    async def on_stop(self) -> None:
        """Close the producers, after the consumer has made its last checkpoint."""
        await super().on_stop()
        await self.close_partitions(set(self.checkpointer.partitions))
        if self._shared_producer is not None:
            await self._shared_producer.stop()
            self._shared_producer = None

    def input_partition(self, batch: ReadingBatch | FrameBatch | RequestBatch) -> InputPartition:
        """Find what this worker has of the partition that a batch came from."""
        return self.checkpointer.partitions[TP(batch.topic, batch.partition)]

    # -- checkpoints

    async def commit_checkpoint(self, offsets: Mapping[TP, int]) -> bool:
        """Make a checkpoint; the consumer calls it where Faust's own would commit offsets."""
        return await self.checkpointer.commit(offsets)

    async def _commit_offsets(self, offsets: Mapping[TP, int]) -> bool:
        consumer = self.consumer._thread._ensure_consumer()
        await consumer.commit(
            {TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        )
        return True

    def settled(self, partition: InputPartition) -> bool:
        """Tell whether the state of a partition has been recovered."""
        recovery = self.tables.recovery
        moving = self.rebalancing or recovery.in_recovery or not recovery.completed.is_set()
        return not moving and partition.committable() is not None

    async def commit_between(self, partition: InputPartition) -> None:
        """Commit what was sent while nothing was read: a transaction must not stay open until something is.

        At least once nothing is open; the state is written with the next checkpoint.
        """
        offset = partition.committable()
        if self.exactly_once and offset is not None and not partition.broken:
            await self.checkpointer.commit({partition.tp: offset})

    async def broker_answers(self) -> bool:
        """Ask the broker for something, and tell whether it answers within `PROBE_S`."""
        consumer = self.consumer._thread._ensure_consumer()
        tps = [TopicPartition(*tp) for tp in self.checkpointer.partitions]
        try:
            await asyncio.wait_for(consumer.end_offsets(tps[:1]), PROBE_S)
        except (KafkaError, OSError, TimeoutError):
            return False
        return True

    def note_lag(self) -> None:
        """Export how far each input partition is behind."""
        consumer = self.consumer
        kafka_consumer = consumer._thread._ensure_consumer()
        for tp in self.checkpointer.partitions:
            end = kafka_consumer.last_stable_offset(TopicPartition(*tp))
            done = consumer._committed_offset.get(tp)
            if end is not None and end >= 0:
                metrics.LAG.labels(tp.topic, tp.partition).set(max(0, end - (done or 0)))
