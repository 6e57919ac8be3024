"""The dead-letter topic: what was refused and why, and sending it again once the cause is mended.

A message is sent again at most once: the original bytes, key, partition and time go out in one Kafka
transaction with a marker in the topic `<dead letter>-replayed`, so that neither a kill nor a second replay
at the same moment can send it twice.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from connectors.errors import TopicMissing
from polarstream.reader import Reader, Record, Start, readable
from streams.errors import RetryLater, UsageError
from streams.kafka import TopicSpec, client_options, ensure_topics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from polarstream.config import Config
    from streams.config import KafkaConfig

ORIGIN_HEADERS: Final = frozenset(
    ("ps-error", "ps-detail", "ps-topic", "ps-partition", "ps-offset", "ps-timestamp")
)
#: not sent again: a repeated sequence number would count as a duplicate
_DROPPED_HEADERS: Final = ORIGIN_HEADERS | {"ps-seq"}
_BATCH: Final = 500


class DeadLetter(msgspec.Struct, frozen=True):
    """One refused message."""

    #: Where it lies in the dead-letter topic: `<partition>/<offset>`.
    id: str
    #: When it was refused, ms since the epoch.
    refused_at_ms: int
    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    replayed: bool

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; bytes as text where they are text."""
        return {
            "id": self.id,
            "refused_at_ms": self.refused_at_ms,
            "reason": self.reason,
            "detail": self.detail,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "timestamp_ms": self.timestamp_ms,
            "key": readable(self.key),
            "value": readable(self.value),
            "headers": {name: readable(value) for name, value in self.headers},
            "replayed": self.replayed,
        }


class ReplayReport(msgspec.Struct, frozen=True):
    """What a replay did."""

    replayed: int
    already: int
    #: Left alone: no origin in the headers, or the origin topic is gone.
    skipped: int
    by_topic: dict[str, int]


def from_record(record: Record, replayed: frozenset[str] | set[str] = frozenset()) -> DeadLetter:
    """The refused message in a record of the dead-letter topic; what its headers lack is empty."""
    headers: dict[str, bytes] = {}
    for name, value in record.headers:
        if name in ORIGIN_HEADERS:
            headers.setdefault(name, value)
    text = {name: value.decode(errors="replace") for name, value in headers.items()}
    identity = f"{record.partition}/{record.offset}"
    return DeadLetter(
        id=identity,
        refused_at_ms=record.timestamp_ms,
        reason=text.get("ps-error", ""),
        detail=text.get("ps-detail", ""),
        topic=text.get("ps-topic", ""),
        partition=_whole(text.get("ps-partition")),
        offset=_whole(text.get("ps-offset")),
        timestamp_ms=_whole(text.get("ps-timestamp")),
        key=record.key,
        value=record.value,
        headers=[(name, value) for name, value in record.headers if name not in ORIGIN_HEADERS],
        replayed=identity in replayed,
    )


async def read_dead_letters(
    config: Config,
    kafka: KafkaConfig,
    *,
    start: Start,
    keep: Callable[[DeadLetter], bool] = lambda _: True,
    limit: int | None = None,
) -> list[DeadLetter]:
    """Dead letters from `start` to now that `keep` keeps, oldest first, the last `limit` of them."""
    found: deque[DeadLetter] = deque(maxlen=limit)
    async for letters in _scan(config, kafka, start):
        found.extend(filter(keep, letters))
    return sorted(found, key=lambda letter: (letter.refused_at_ms, letter.id))


async def find_dead_letter(config: Config, kafka: KafkaConfig, identity: str) -> DeadLetter:
    """The dead letter with this id.

    Raises:
        UsageError: it is not there (any more).
    """
    partition, _, offset = identity.partition("/")
    if not (partition.isdigit() and offset.isdigit()):
        raise UsageError(f"'{identity}' is no id of a dead letter: it looks like 0/42 (dlq list shows them)")
    start = Start("offset", partition=int(partition), offset=int(offset))
    async with contextlib.aclosing(_scan(config, kafka, start)) as found:
        # the first batch begins at the offset
        for letter in await anext(found, []):
            if letter.id == identity:
                return letter
    raise UsageError(f"there is no dead letter '{identity}' (any more): dlq list shows what there is")


async def count_dead_letters(
    config: Config, kafka: KafkaConfig, *, start: Start, keep: Callable[[DeadLetter], bool] = lambda _: True
) -> dict[str, int]:
    """How many wait to be sent again and how many were."""
    counts = {"waiting": 0, "already": 0}
    async for letters in _scan(config, kafka, start):
        for letter in filter(keep, letters):
            counts["already" if letter.replayed else "waiting"] += 1
    return counts


async def replay_dead_letters(
    config: Config,
    kafka: KafkaConfig,
    *,
    start: Start,
    keep: Callable[[DeadLetter], bool] = lambda _: True,
    progress: Callable[[int], None] | None = None,
) -> ReplayReport:
    """Send dead letters back to the topics that they came from, each at most once, ever.

    Raises:
        RetryLater: another replay took over, or the broker went away; what was committed stays sent.
    """
    from aiokafka import AIOKafkaProducer
    from aiokafka.errors import KafkaError, ProducerFenced

    from polarstream.topics import list_topics

    topic = config.topics.dead_letter
    markers = marker_topic(topic)
    await ensure_topics(kafka, {markers: _marker_spec(config)})
    producer = AIOKafkaProducer(
        **client_options(kafka), transactional_id=f"{config.app_id}-dlq-replay", enable_idempotence=True
    )
    already = skipped = done = 0
    by_topic: dict[str, int] = {}
    try:
        # the transactional id fences a replay that still runs: only then are the markers final
        await producer.start()
        partitions = {t.name: t.partitions for t in await list_topics(kafka, internal=True)}
        async for letters in _scan(config, kafka, start):
            kept = [letter for letter in letters if keep(letter)]
            todo = [x for x in kept if not x.replayed and x.topic in partitions and x.topic != topic]
            already += sum(letter.replayed for letter in kept)
            skipped += sum(not letter.replayed for letter in kept) - len(todo)
            for at in range(0, len(todo), _BATCH):
                batch = todo[at : at + _BATCH]
                async with producer.transaction():
                    for letter in batch:
                        await _send_again(producer, letter, partitions[letter.topic], markers)
                for letter in batch:
                    by_topic[letter.topic] = by_topic.get(letter.topic, 0) + 1
                done += len(batch)
                if progress is not None:
                    progress(done)
    except ProducerFenced as error:
        raise RetryLater("another dlq replay has taken over: let it finish, then list again") from error
    except (KafkaError, OSError) as error:
        raise RetryLater(
            f"the replay broke off ({type(error).__name__}): run it again, what was sent is remembered"
        ) from error
    finally:
        await producer.stop()
    return ReplayReport(done, already, skipped, by_topic)


async def _scan(config: Config, kafka: KafkaConfig, start: Start) -> AsyncGenerator[list[DeadLetter]]:
    """All dead letters from `start` to now, in batches; nothing where there is no such topic yet."""
    topic = config.topics.dead_letter
    replayed = await _read_markers(kafka, marker_topic(topic))
    try:
        async with Reader(kafka, [topic], start) as reader:
            async for records in reader.to_end():
                yield [from_record(record, replayed) for record in records]
    except TopicMissing:
        return


def marker_topic(dead_letter: str) -> str:
    """Name of the topic that remembers what was sent again."""
    return f"{dead_letter}-replayed"


async def _send_again(producer: Any, letter: DeadLetter, partitions: int, markers: str) -> None:
    await producer.send(
        letter.topic,
        key=letter.key,
        value=letter.value if letter.value is not None or letter.key is not None else b"",
        partition=letter.partition if 0 <= letter.partition < partitions else None,
        timestamp_ms=letter.timestamp_ms if letter.timestamp_ms > 0 else None,
        headers=[(name, value) for name, value in letter.headers if name not in _DROPPED_HEADERS],
    )
    await producer.send(markers, key=letter.id.encode(), value=b"1", partition=0)


def _marker_spec(config: Config) -> TopicSpec:
    # a marker must outlive its dead letter, which it does when both are kept equally long
    hours = config.topics.retention_hours + 24
    configs = {"cleanup.policy": "compact,delete", "retention.ms": str(hours * 3_600_000)}
    return TopicSpec(1, config.topics.replication_factor, configs)


async def _read_markers(kafka: KafkaConfig, topic: str) -> set[str]:
    try:
        async with Reader(kafka, [topic], Start("earliest")) as reader:
            return {
                record.key.decode()
                async for records in reader.to_end()
                for record in records
                if record.key is not None
            }
    except TopicMissing:
        return set()


def _whole(text: str | None) -> int:
    try:
        return int(text) if text is not None else -1
    except ValueError:
        return -1
