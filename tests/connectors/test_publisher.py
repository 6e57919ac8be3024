from __future__ import annotations

import asyncio
import time
from collections import defaultdict

import pytest

from connectors.errors import TopicMissing
from connectors.publisher import MAX_MESSAGE_BYTES, Publisher, partition_of
from connectors.source import Message
from polarstream.reader import Reader, Record, Start
from streams.config import KafkaConfig
from streams.errors import BrokerUnavailable, RetryLater, UsageError
from streams.kafka import TopicSpec, ensure_topics


async def read_all(kafka: KafkaConfig, topic: str) -> list[Record]:
    async with Reader(kafka, [topic], Start("earliest")) as reader:
        return [record async for records in reader.to_end() for record in records]


@pytest.fixture
async def topic(kafka: KafkaConfig, topic_prefix: str) -> str:
    name = f"{topic_prefix}in"
    await ensure_topics(kafka, {name: TopicSpec(3)})
    return name


def test_partitions_are_those_of_every_kafka_client() -> None:
    """Values of `org.apache.kafka.common.utils.Utils.murmur2`, by its own test."""
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    for key, hashed in known.items():
        assert partition_of(key, 7) == (hashed & 0x7FFFFFFF) % 7


async def test_messages_are_in_order_by_key_and_numbered_by_partition(kafka: KafkaConfig, topic: str) -> None:
    messages = [Message(f"sensor-{n % 40}".encode(), str(n).encode()) for n in range(20_000)]
    async with Publisher(kafka) as publisher:
        for at in range(0, len(messages), 700):
            assert await publisher.publish(topic, messages[at : at + 700]) in (700, 400)
        await publisher.flush()
        assert (publisher.acknowledged, publisher.failed) == (20_000, 0)
    by_key, numbers = defaultdict(list), defaultdict(list)
    producers = set()
    for record in await read_all(kafka, topic):
        assert record.key is not None
        assert record.value is not None
        assert record.partition == partition_of(record.key, 3)
        by_key[record.key].append(int(record.value))
        [(name, value)] = record.headers
        assert name == "ps-seq"
        producer, _, number = value.decode().partition(":")
        producers.add(producer)
        numbers[record.partition].append(int(number))
    assert sum(map(len, by_key.values())) == 20_000
    assert all(values == sorted(values) for values in by_key.values())
    assert all(values == list(range(len(values))) for values in numbers.values())
    assert len(producers) == 1


async def test_messages_without_key_go_around_and_keep_their_time_and_headers(
    kafka: KafkaConfig, topic: str
) -> None:
    async with Publisher(kafka, sequence=False) as publisher:
        for n in range(6):
            await publisher.publish(topic, [Message(None, b"x", 1_700_000_000_000 + n, [("a", b"b")])])
    records = await read_all(kafka, topic)
    assert sorted(r.partition for r in records) == [0, 0, 1, 1, 2, 2]
    assert sorted(r.timestamp_ms for r in records) == [1_700_000_000_000 + n for n in range(6)]
    assert all(list(r.headers) == [("a", b"b")] for r in records)


async def test_a_topic_that_does_not_exist_is_named(kafka: KafkaConfig, topic_prefix: str) -> None:
    async with Publisher(kafka, delivery_timeout_s=5) as publisher:
        with pytest.raises(TopicMissing, match=f"topic '{topic_prefix}none' does not exist"):
            await publisher.publish(f"{topic_prefix}none", [Message(None, b"x")])


async def test_a_message_over_the_limit_is_refused_with_the_limit_and_costs_no_number(
    kafka: KafkaConfig, topic: str
) -> None:
    async with Publisher(kafka) as publisher:
        with pytest.raises(UsageError, match=f"exceeds Kafka's limit of {MAX_MESSAGE_BYTES}"):
            await publisher.publish(topic, [Message(b"k", b"y"), Message(b"k", b"x" * 1_100_000)])
        await publisher.publish(topic, [Message(b"k", b"x" * 1_000_000)])
        await publisher.publish(topic, [Message(b"k", b"z")])
    assert [r.headers[0][1].split(b":")[1] for r in await read_all(kafka, topic)] == [b"0", b"1"]


async def test_no_broker_is_told_in_a_bounded_time() -> None:
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"no Kafka broker answers at 127\.0\.0\.1:1 "):
        await Publisher(KafkaConfig(bootstrap_servers=["127.0.0.1:1"])).start()
    assert time.monotonic() - started < 10


async def test_a_publisher_outlives_its_broker(own_broker) -> None:  # type: ignore[no-untyped-def]
    """What cannot be sent is counted, and its numbers are missing in the log: a reader sees the loss."""
    own = own_broker()
    kafka = KafkaConfig(bootstrap_servers=[own.bootstrap])
    await ensure_topics(kafka, {"t": TopicSpec(1)})
    async with Publisher(kafka, delivery_timeout_s=3) as publisher:
        await publisher.publish("t", [Message(b"k", b"before")])
        await publisher.flush()
        own.kill()
        with pytest.raises(RetryLater, match="could not be delivered"):  # noqa: PT012
            for _ in range(100):
                await publisher.publish("t", [Message(b"k", b"lost")])
                await asyncio.sleep(0.1)
        assert publisher.failed > 0
        await asyncio.to_thread(own.start)
        async with asyncio.timeout(60):
            while True:
                try:
                    await publisher.publish("t", [Message(b"k", b"after")])
                    await publisher.flush()
                    break
                except RetryLater:
                    await asyncio.sleep(0.1)
    records = await read_all(kafka, "t")
    assert records[0].value == b"before"
    assert records[-1].value == b"after"
    numbers = [int(r.headers[0][1].split(b":")[1]) for r in records]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] + 1 - len(numbers) == publisher.failed
