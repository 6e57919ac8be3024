"""Messages into Kafka: idempotent, in order by key, and numbered so that a loss can be seen.

Each message carries the header `ps-seq` = `<producer>:<n>`: `producer` is new with every start of a
publisher, `n` counts from 0 per partition. A reader that keeps the last `n` of each producer and partition
tells what was lost and what came twice.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.partitioner import murmur2

from connectors.errors import TopicMissing
from streams import metrics
from streams.errors import BrokerUnavailable, RetryLater, UsageError
from streams.kafka import client_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from connectors.source import Message
    from streams.config import KafkaConfig

_log = logging.getLogger(__name__)

SEQUENCE_HEADER: Final = "ps-seq"
#: Kafka's own default limit of one message (`message.max.bytes`), less room for the envelope.
MAX_MESSAGE_BYTES: Final = 1_048_588 - 1_024
_BATCH_BYTES: Final = 262_144
_MAX_CACHED_KEYS: Final = 100_000


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that every Kafka client gives this key (murmur2)."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


class Publisher:
    """An idempotent producer of numbered messages. Use as an async context manager.

    Args:
        kafka: how the brokers are reached.
        sequence: number the messages with the header `ps-seq`.
        delivery_timeout_s: how long a message is tried before it counts as failed.

    Calls of `publish` from several tasks take turns, so that numbers follow the log's order.
    """

    def __init__(
        self, kafka: KafkaConfig, *, sequence: bool = True, delivery_timeout_s: float | None = None
    ) -> None:
        self._options: dict[str, Any] = client_options(kafka)
        if delivery_timeout_s is not None:
            self._options["request_timeout_ms"] = int(delivery_timeout_s * 1000)
        self._servers = ", ".join(kafka.bootstrap_servers)
        self._prefix = f"{secrets.token_hex(6)}:" if sequence else ""
        self._producer: AIOKafkaProducer | None = None
        self._turn = asyncio.Lock()
        self._numbers: dict[tuple[str, int], int] = defaultdict(int)
        self._partition_cache: dict[tuple[bytes, int], int] = {}
        self._next_keyless = 0
        self._pending: set[asyncio.Future[Any]] = set()
        self._failure: BaseException | None = None
        #: Messages that the broker acknowledged.
        self.acknowledged = 0
        #: Messages that were given up.
        self.failed = 0

    async def __aenter__(self) -> Publisher:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(flush=kind is None)

    async def start(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailable: no broker answered.
        """
        producer = AIOKafkaProducer(
            **self._options, enable_idempotence=True, linger_ms=2, max_batch_size=_BATCH_BYTES
        )
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await producer.stop()
            raise BrokerUnavailable(
                f"no Kafka broker answers at {self._servers} ({type(error).__name__}): is it running, "
                "and do the security settings fit? polarstream doctor looks"
            ) from error
        self._producer = producer

    async def stop(self, *, flush: bool = True) -> None:
        """Send what is left (unless `flush` is false) and disconnect; safe to call twice.

        Raises:
            RetryLater: messages could not be delivered; `failed` says how many.
        """
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            if flush:
                await self._settle()
        finally:
            await producer.stop()

    async def partitions(self, topic: str) -> int:
        """How many partitions `topic` has.

        Raises:
            TopicMissing: there is no such topic.
            BrokerUnavailable: the broker went away.
        """
        producer = self._running()
        known = producer.client.cluster.partitions_for_topic(topic)
        if not known:
            try:
                # all topics: to ask for one by name may make the broker create it, and waits long
                if topic not in (await producer.client.fetch_all_metadata()).topics():
                    raise TopicMissing(topic)
                known = await producer.partitions_for(topic)
            except UnknownTopicOrPartitionError as error:
                raise TopicMissing(topic) from error
            except KafkaError as error:
                raise self._lost(error) from error
        return len(known)

    async def publish(self, topic: str, messages: Iterable[Message]) -> int:
        """Hand messages to the producer in order; returns how many. `flush` waits for their delivery.

        Waits while the producer's buffers are full, so that a fast source cannot fill the memory.

        Raises:
            TopicMissing: there is no such topic.
            UsageError: a message is over Kafka's limit, or the topic may not be written.
            RetryLater: this or an earlier message could not be delivered in time.
        """
        producer = self._running()
        async with self._turn:
            self._raise_failure()
            count = await self.partitions(topic)
            by_partition: dict[int, list[Message]] = defaultdict(list)
            total = 0
            for message in messages:
                if len(message.value) + len(message.key or b"") > MAX_MESSAGE_BYTES:
                    raise UsageError(
                        f"a message of {len(message.value)} bytes exceeds Kafka's limit of "
                        f"{MAX_MESSAGE_BYTES}: send it in parts"
                    )
                by_partition[self._partition(message.key, count)].append(message)
                total += 1
            for partition, part in by_partition.items():
                await self._send(producer, topic, partition, part)
        return total

    async def flush(self) -> None:
        """Wait until everything that was published is acknowledged.

        Raises:
            RetryLater: messages could not be delivered; `failed` says how many.
        """
        self._running()
        await self._settle()

    async def _settle(self) -> None:
        if self._pending:
            await asyncio.wait(set(self._pending))
            await asyncio.sleep(0)  # their callbacks count
        self._raise_failure()

    async def _send(
        self, producer: AIOKafkaProducer, topic: str, partition: int, messages: Sequence[Message]
    ) -> None:
        number = self._numbers[topic, partition]
        now_ms = int(time.time() * 1000)
        batch = producer.create_batch()
        for message in messages:
            headers = list(message.headers)
            if self._prefix:
                headers.append((SEQUENCE_HEADER, f"{self._prefix}{number}".encode()))
            timestamp = now_ms if message.timestamp_ms is None else message.timestamp_ms
            record = {"timestamp": timestamp, "key": message.key, "value": message.value, "headers": headers}
            if batch.append(**record) is None:
                await self._submit(producer, batch, topic, partition)
                batch = producer.create_batch()
                batch.append(**record)
            number += 1
            self._numbers[topic, partition] = number
        if batch.record_count():
            await self._submit(producer, batch, topic, partition)

    async def _submit(self, producer: AIOKafkaProducer, batch: Any, topic: str, partition: int) -> None:
        count = batch.record_count()
        batch.close()
        try:
            future: asyncio.Future[Any] = await producer.send_batch(batch, topic, partition=partition)
        except (KafkaError, OSError) as error:
            self.failed += count
            raise self._lost(error) from error
        self._pending.add(future)

        def settled(done: asyncio.Future[Any]) -> None:
            self._pending.discard(done)
            error = None if done.cancelled() else done.exception()
            if done.cancelled() or error is not None:
                self.failed += count
                self._failure = error
            else:
                self.acknowledged += count
                metrics.PUBLISHED.labels(topic).inc(count)

        future.add_done_callback(settled)

    def _partition(self, key: bytes | None, count: int) -> int:
        if key is None:
            self._next_keyless += 1
            return self._next_keyless % count
        partition = self._partition_cache.get((key, count))
        if partition is None:
            if len(self._partition_cache) >= _MAX_CACHED_KEYS:
                self._partition_cache.clear()
            partition = self._partition_cache[key, count] = partition_of(key, count)
        return partition

    def _running(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise RuntimeError("the publisher is not started: use it in `async with`")
        return self._producer

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise self._lost(failure) from failure

    def _lost(self, error: BaseException) -> RetryLater | UsageError:
        if isinstance(error, MessageSizeTooLargeError):
            return UsageError("the broker refused a message as too large: raise its message.max.bytes")
        if isinstance(error, TopicAuthorizationFailedError):
            return UsageError(f"this user may not write there: {error}")
        return RetryLater(
            f"messages could not be delivered to {self._servers} in time ({type(error).__name__}): "
            "they may be sent again once the broker is back"
        )
