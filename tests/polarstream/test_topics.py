from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from connectors.errors import TopicMissing
from connectors.publisher import Publisher
from connectors.source import Message
from polarstream.filters import parse_filter
from polarstream.reader import Reader, Record, Start, tail
from polarstream.topics import create_topic, describe_topic, group_lag, list_topics, partition_counts
from streams.config import KafkaConfig
from streams.errors import UsageError
from streams.kafka import TopicSpec, client_options


async def publish(kafka: KafkaConfig, topic: str, values: list[bytes], key: bytes | None = None) -> None:
    async with Publisher(kafka) as publisher:
        await publisher.publish(topic, [Message(key, value) for value in values])


async def test_a_topic_is_created_once_listed_and_described(kafka: KafkaConfig, topic_prefix: str) -> None:
    name = f"{topic_prefix}a"
    spec = TopicSpec(3, configs={"retention.ms": "3600000"})
    assert await create_topic(kafka, name, spec)
    assert not await create_topic(kafka, name, spec)
    await publish(kafka, name, [b"x"] * 7)
    [found] = [t for t in await list_topics(kafka) if t.name == name]
    assert (found.partitions, found.replication, found.messages, found.internal) == (3, 1, 7, False)
    detail = await describe_topic(kafka, name)
    assert detail.configs["retention.ms"] == "3600000"
    assert sum(p.end - p.first for p in detail.partitions) == 7
    assert [p.partition for p in detail.partitions] == [0, 1, 2]
    assert detail.groups == []


async def test_lag_is_what_a_group_has_not_committed(kafka: KafkaConfig, topic_prefix: str) -> None:
    name, group = f"{topic_prefix}a", f"{topic_prefix}g"
    await create_topic(kafka, name, TopicSpec(2))
    await publish(kafka, name, [b"x"] * 10)
    consumer = AIOKafkaConsumer(**client_options(kafka), group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(name, 0)])
        await consumer.commit({TopicPartition(name, 0): 3})
    finally:
        await consumer.stop()
    [lag] = await group_lag(kafka, group)
    assert lag.partitions == {0: (3, 2), 1: (None, 5)}
    assert lag.lag == 7
    assert [g.group for g in (await describe_topic(kafka, name)).groups] == [group]
    assert await group_lag(kafka, f"{group}-other") == []


async def test_a_missing_topic_is_guessed_and_never_made(kafka: KafkaConfig, topic_prefix: str) -> None:
    await create_topic(kafka, f"{topic_prefix}sensors", TopicSpec(1))
    with pytest.raises(TopicMissing, match=f"did you mean '{topic_prefix}sensors'"):
        await partition_counts(kafka, [f"{topic_prefix}sensor"])
    with pytest.raises(TopicMissing):
        await describe_topic(kafka, f"{topic_prefix}sensor")
    assert f"{topic_prefix}sensor" not in {t.name for t in await list_topics(kafka, internal=True)}


async def test_a_wrong_name_is_a_usage_error(kafka: KafkaConfig) -> None:
    for name in ("", "a b", "ä", "..", "x" * 250):
        with pytest.raises(UsageError, match="is no topic name"):
            await create_topic(kafka, name, TopicSpec(1))


async def test_reading_starts_where_it_is_told(kafka: KafkaConfig, topic_prefix: str) -> None:
    name = f"{topic_prefix}a"
    await create_topic(kafka, name, TopicSpec(1))
    async with Publisher(kafka) as publisher:
        await publisher.publish(
            name, [Message(None, str(n).encode(), 1_700_000_000_000 + n) for n in range(10)]
        )

    async def read(start: Start) -> list[int]:
        async with Reader(kafka, [name], start) as reader:
            return [r.offset async for records in reader.to_end() for r in records]

    assert await read(Start("earliest")) == list(range(10))
    assert await read(Start("latest")) == []
    assert await read(Start("time", 1_700_000_000.004)) == [4, 5, 6, 7, 8, 9]
    assert await read(Start("time", 1_800_000_000.0)) == []
    assert await read(Start("offset", partition=0, offset=8)) == [8, 9]
    assert await read(Start("offset", partition=0, offset=99)) == []


async def test_partitions_that_are_added_are_read_too(kafka: KafkaConfig, topic_prefix: str) -> None:
    name = f"{topic_prefix}a"
    await create_topic(kafka, name, TopicSpec(1))
    await publish(kafka, name, [b"old"] * 3)
    seen: list[tuple[int, int]] = []
    async with Reader(kafka, [name], Start("earliest")) as reader, asyncio.timeout(30):
        while len(seen) < 3:
            seen += [(r.partition, r.offset) for r in await reader.poll(0.1)]
        admin = AIOKafkaAdminClient(**client_options(kafka))
        await admin.start()
        await admin.create_partitions({name: NewPartitions(total_count=3)})
        await admin.close()
        await publish(kafka, name, [b"new"] * 9)
        while len(seen) < 12:
            seen += [(r.partition, r.offset) for r in await reader.poll(0.1)]
    assert len(set(seen)) == 12
    assert {p for p, _ in seen} == {0, 1, 2}


async def test_tail_filters_limits_and_ends(kafka: KafkaConfig, topic_prefix: str) -> None:
    name = f"{topic_prefix}a"
    await create_topic(kafka, name, TopicSpec(1))
    await publish(kafka, name, [b'{"score": %d}' % n for n in range(10)] + [b"\xff", b"[1]"], b"k")
    shown: list[Record] = []
    count = await tail(
        kafka, name, shown.append, start=Start("earliest"), keep=parse_filter("score > 6"), until_end=True
    )
    assert count == 3
    assert [r.json_value() for r in shown] == [{"score": 7}, {"score": 8}, {"score": 9}]
    assert await tail(kafka, name, shown.append, start=Start("earliest"), limit=2) == 2
    assert await tail(kafka, name, shown.append, start=Start("latest"), timeout_s=0.3) == 0
    odd: list[Record] = []
    await tail(
        kafka,
        name,
        odd.append,
        start=Start("earliest"),
        keep=parse_filter("kafka.offset > 9"),
        until_end=True,
    )
    assert [r.as_dict()["value"] for r in odd] == [{"base64": "/w=="}, [1]]
