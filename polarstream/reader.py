"""Reading a topic beside all consumer groups: from the start, the end or a time; nothing is committed."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from polarstream.times import parse_duration, parse_time
from streams.errors import BrokerUnavailable, UsageError
from streams.kafka import client_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from types import TracebackType

    from aiokafka import AIOKafkaConsumer, TopicPartition

    from polarstream.filters import Filter
    from streams.config import KafkaConfig

_METADATA_AGE_MS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Record:
    """One message as Kafka holds it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]

    @property
    def at(self) -> tuple[str, int]:
        """Topic and partition; equal to aiokafka's `TopicPartition`."""
        return (self.topic, self.partition)

    def json_value(self) -> Any:
        """The value as JSON, else as text, else as `{"base64": ...}`."""
        if self.value is None:
            return None
        try:
            return msgspec.json.decode(self.value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return readable(self.value)

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "timestamp_ms": self.timestamp_ms,
            "key": readable(self.key),
            "value": self.json_value(),
            "headers": {name: readable(value) for name, value in self.headers},
        }

    def as_filter_input(self) -> dict[str, Any]:
        """What a filter sees: the fields of the value, and the envelope under `kafka`."""
        value = self.json_value()
        fields = value if isinstance(value, dict) else {"value": value}
        envelope = {
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "timestamp_ms": self.timestamp_ms,
            "key": readable(self.key),
        }
        return {**fields, "kafka": envelope}


def readable(data: bytes | None) -> Any:
    """Bytes as text where they are text, else as `{"base64": ...}`."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


@dataclass(frozen=True, slots=True)
class Start:
    """Where reading begins."""

    at: Literal["earliest", "latest", "time", "offset"]
    #: Seconds since the epoch, for `time`.
    time_s: float = 0.0
    #: The only partition that is read, and from where, for `offset`.
    partition: int = 0
    offset: int = 0


def parse_start(text: str, now_s: float | None = None) -> Start:
    """A start from `earliest`, `latest`, a time, or a time ago (`-10m`).

    Raises:
        UsageError: it is none of these.
    """
    if text == "earliest":
        return Start("earliest")
    if text == "latest":
        return Start("latest")
    if text.startswith("-"):
        return Start("time", (time.time() if now_s is None else now_s) - parse_duration(text[1:]))
    try:
        return Start("time", parse_time(text))
    except ValueError:
        raise UsageError(
            f"cannot start from '{text}': write earliest, latest, a time (2026-01-31T12:00:00Z) or -10m"
        ) from None


class Reader:
    """Reads whole topics. Use as an async context manager, and `poll`.

    Args:
        kafka: how the brokers are reached.
        topics: existing topics. Partitions that are added while it reads are read too, from their start.
        start: where to begin.
    """

    def __init__(self, kafka: KafkaConfig, topics: Sequence[str], start: Start) -> None:
        self._kafka = kafka
        self._topics = list(topics)
        self._start = start
        self._consumer: AIOKafkaConsumer | None = None
        self._ends: dict[TopicPartition, int] = {}
        self._known: set[TopicPartition] = set()

    async def __aenter__(self) -> Reader:
        from aiokafka import AIOKafkaConsumer, TopicPartition
        from aiokafka.errors import KafkaError

        from polarstream.topics import partition_counts

        counts = await partition_counts(self._kafka, self._topics)
        self._consumer = AIOKafkaConsumer(
            **client_options(self._kafka),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # what retention deleted under our feet is skipped
            isolation_level="read_committed",
            metadata_max_age_ms=_METADATA_AGE_MS,
        )
        try:
            await self._consumer.start()
            self._known = {
                TopicPartition(topic, number)
                for topic, count in counts.items()
                for number in range(count)
                if self._start.at != "offset" or number == self._start.partition
            }
            self._consumer.assign(list(self._known))
            first = await self._consumer.beginning_offsets(list(self._known))
            self._ends = await self._consumer.end_offsets(list(self._known))
            for partition, offset in (await self._starts(first)).items():
                self._consumer.seek(partition, offset)
        except (KafkaError, OSError) as error:
            await self._consumer.stop()
            raise BrokerUnavailable(f"the broker stopped answering ({type(error).__name__})") from error
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._consumer is not None:
            await self._consumer.stop()

    async def poll(self, timeout_s: float, max_records: int | None = None) -> list[Record]:
        """What has come, in order by partition; empty when nothing came within `timeout_s`."""
        consumer = self._open()
        self._follow_growth(consumer)
        found = await consumer.getmany(timeout_ms=max(0, int(timeout_s * 1000)), max_records=max_records)
        return [
            Record(m.topic, m.partition, m.offset, m.timestamp, m.key, m.value, m.headers)
            for messages in found.values()
            for m in messages
        ]

    async def at_end(self) -> bool:
        """Whether everything was read that was there when reading began."""
        consumer = self._open()
        for partition, end in self._ends.items():
            if await consumer.position(partition) < end:
                return False
        return True

    async def to_end(self) -> AsyncIterator[list[Record]]:
        """Everything that was there when reading began, in batches."""
        while not await self.at_end():
            if records := await self.poll(0.2, 2000):
                yield [r for r in records if r.offset < self._ends.get(r.at, 0)]

    async def _starts(self, first: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        if self._start.at == "earliest":
            return first
        if self._start.at == "offset":
            return {p: max(first[p], min(self._start.offset, self._ends[p])) for p in first}
        if self._start.at == "latest":
            return self._ends
        at_ms = max(0, int(self._start.time_s * 1000))
        found = await self._open().offsets_for_times(dict.fromkeys(first, at_ms))
        return {p: self._ends[p] if hit is None else hit.offset for p, hit in found.items()}

    def _follow_growth(self, consumer: AIOKafkaConsumer) -> None:
        from aiokafka import TopicPartition

        now = {
            TopicPartition(topic, number)
            for topic in self._topics
            for number in consumer.partitions_for_topic(topic) or ()
        }
        if now <= self._known or self._start.at == "offset":
            return
        state = consumer._subscription.subscription.assignment.state_value
        positions = {p: state(p).position for p in self._known if state(p).has_valid_position}
        fresh = now - self._known
        self._known |= now
        consumer.assign(list(self._known))
        for partition, offset in {**positions, **dict.fromkeys(fresh, 0)}.items():
            consumer.seek(partition, offset)

    def _open(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise RuntimeError("the reader is not open: use it in `async with`")
        return self._consumer


async def tail(
    kafka: KafkaConfig,
    topic: str,
    show: Callable[[Record], None],
    *,
    start: Start,
    keep: Filter | None = None,
    limit: int | None = None,
    timeout_s: float | None = None,
    until_end: bool = False,
) -> int:
    """Hand records to `show` as they come; returns how many.

    Args:
        kafka: how the brokers are reached.
        topic: an existing topic.
        show: called with each record, in order by partition.
        start: where to begin.
        keep: only records that pass.
        limit: end after so many.
        timeout_s: end after this long.
        until_end: end at what was there when reading began.
    """
    shown = 0
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    async with Reader(kafka, [topic], start) as reader:
        while deadline is None or time.monotonic() < deadline:
            wait = 0.5 if deadline is None else min(0.5, max(0.0, deadline - time.monotonic()))
            for record in await reader.poll(wait, 2000):
                if keep is not None and not keep(record.as_filter_input()):
                    continue
                show(record)
                shown += 1
                if shown == limit:
                    return shown
            if until_end and await reader.at_end():
                break
    return shown
