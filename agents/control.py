"""Compacted topics of what is set: read whole when a worker starts, followed while it runs.

Such a topic has one partition, and every worker reads all of it, beside the consumer group: a rule concerns
sensors wherever they are. A record takes effect when it is read. What can't be used goes to the
dead letters, from each worker that reads it (topic, partition and offset in its headers tell the copies
apart from others).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from streams import metrics
from streams.codecs import dead_letter
from streams.control import ControlState
from streams.errors import BadRecord, BrokerUnavailable
from streams.kafka import client_options
from streams.records import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streams.config import KafkaConfig, TopicsConfig

log = logging.getLogger("polarstream.control")

#: How long a broker may take over the first reading, in seconds.
READ_S = 60.0
#: How long to wait after the broker has failed, in seconds.
PAUSE_S = 1.0


class CompactedFollower:
    """Hands the records of a compacted topic on, in the order of the log.

    Args:
        kafka: how the brokers are reached.
        topics: the names of the topics.
        topic: the one to follow.
        apply: takes key and value of a record in; returns its kind, for counters. Raises BadRecord.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        topics: TopicsConfig,
        topic: str,
        apply: Callable[[bytes | None, bytes | None], str],
    ) -> None:
        self._kafka, self._topics = kafka, topics
        self._tp = TopicPartition(topic, 0)
        self._apply = apply
        self._next = 0
        self._letters: list[Rejected] = []

    async def read_all(self) -> None:
        """Read what there is.

        Raises:
            BrokerUnavailable: no broker answered.
        """
        try:
            async with asyncio.timeout(READ_S):
                consumer = await self._open()
                try:
                    end = (await consumer.end_offsets([self._tp]))[self._tp]
                    messages: dict[bytes | None, Any] = {}
                    while await consumer.position(self._tp) < end:
                        for message in await self._fetch(consumer):
                            # only the last word on each key counts
                            messages.pop(message.key, None)
                            messages[message.key] = message
                    self._next = await consumer.position(self._tp)
                finally:
                    await consumer.stop()
        except (KafkaError, OSError, TimeoutError) as error:
            raise BrokerUnavailable(
                f"the topic '{self._tp.topic}' can't be read ({type(error).__name__})"
            ) from error
        self.take(messages.values())

    def take(self, messages: Iterable[Any]) -> None:
        """Take messages in: aiokafka's records, in the order of the log."""
        for message in messages:
            try:
                kind = self._apply(message.key, message.value)
            except BadRecord as error:
                log.warning("record of topic %s refused: %s", self._tp.topic, error.detail)
                metrics.CONTROL_REFUSED.inc()
                self._letters.append(
                    Rejected(
                        message.offset,
                        message.timestamp,
                        message.key,
                        message.value,
                        message.headers,
                        error.reason,
                        error.detail,
                    )
                )
            else:
                metrics.CONTROL_RECORDS.labels(kind).inc()

    async def follow(self) -> None:
        """Take in what comes, until cancelled; a broker that is gone is waited for."""
        while True:
            try:
                consumer = await self._open()
            except (KafkaError, OSError) as error:
                log.debug("topic %s: %s", self._tp.topic, error)
                await asyncio.sleep(PAUSE_S)
                continue
            try:
                consumer.seek(self._tp, self._next)
                while True:
                    await self._send_letters()
                    self.take(await self._fetch(consumer))
                    self._next = await consumer.position(self._tp)
            except (KafkaError, OSError) as error:
                log.warning(
                    "the topic %s can't be followed (%s); trying again", self._tp.topic, type(error).__name__
                )
                await asyncio.sleep(PAUSE_S)
            finally:
                await consumer.stop()

    async def _fetch(self, consumer: AIOKafkaConsumer) -> list[Any]:
        found = await consumer.getmany(self._tp, timeout_ms=500)
        return [message for messages in found.values() for message in messages]

    async def _open(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **client_options(self._kafka),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        try:
            await consumer.start()
            consumer.assign([self._tp])
            await consumer.seek_to_beginning(self._tp)
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    async def _send_letters(self) -> None:
        if not self._letters:
            return
        producer = AIOKafkaProducer(**client_options(self._kafka))
        try:
            await producer.start()
            for rejected in self._letters:
                key, value, headers = dead_letter(rejected, self._tp.topic, self._tp.partition)
                await producer.send_and_wait(self._topics.dead_letter, value, key=key, headers=headers)
                metrics.DEAD_LETTERS.labels("control", rejected.reason).inc()
        finally:
            await producer.stop()
        self._letters.clear()


class ControlFollower(CompactedFollower):
    """Reads the control topic into a `ControlState`.

    Args:
        kafka: how the brokers are reached.
        topics: the names of the topics.
    """

    def __init__(self, kafka: KafkaConfig, topics: TopicsConfig) -> None:
        self.state = ControlState()
        super().__init__(kafka, topics, topics.control, self.state.apply)
