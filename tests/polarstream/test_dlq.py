from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from connectors.publisher import Publisher
from connectors.source import Message
from polarstream.config import Config
from polarstream.dlq import (
    count_dead_letters,
    find_dead_letter,
    from_record,
    read_dead_letters,
    replay_dead_letters,
)
from polarstream.reader import Reader, Record, Start
from streams.config import KafkaConfig, TopicsConfig
from streams.errors import RetryLater, UsageError
from streams.kafka import TopicSpec, ensure_topics

START = Start("earliest")


@pytest.fixture
async def config(kafka: KafkaConfig, topic_prefix: str, tmp_path: Path) -> Config:
    topics = TopicsConfig(dead_letter=f"{topic_prefix}dead")
    await ensure_topics(kafka, {topics.dead_letter: TopicSpec(2), f"{topic_prefix}in": TopicSpec(4)})
    return Config(app_id=f"{topic_prefix}app", data_dir=tmp_path, kafka=kafka, topics=topics, streams=[])


def dead(
    topic: str, offset: int, reason: str = "not_json", key: bytes | None = b"k", value: bytes = b"\xff{"
) -> Message:
    headers = [
        ("ps-error", reason.encode()),
        ("ps-detail", b"what is wrong"),
        ("ps-topic", topic.encode()),
        ("ps-partition", b"2"),
        ("ps-offset", str(offset).encode()),
        ("ps-timestamp", b"1700000000123"),
        ("content-type", b"application/json"),
        ("ps-seq", b"abc:7"),
    ]
    return Message(key, value, None, headers)


async def put(kafka: KafkaConfig, config: Config, *messages: Message) -> None:
    async with Publisher(kafka, sequence=False) as publisher:
        await publisher.publish(config.topics.dead_letter, messages)


async def read(kafka: KafkaConfig, topic: str) -> list[Record]:
    async with Reader(kafka, [topic], START) as reader:
        return [r async for records in reader.to_end() for r in records]


async def test_refused_messages_are_listed_with_reason_and_origin(
    kafka: KafkaConfig, config: Config, topic_prefix: str
) -> None:
    origin = f"{topic_prefix}in"
    await put(kafka, config, dead(origin, 1), dead(origin, 2, "out_of_bounds"), dead(origin, 3))
    found = await read_dead_letters(config, kafka, start=START)
    assert [(x.reason, x.topic, x.partition, x.offset) for x in found] == [
        ("not_json", origin, 2, 1),
        ("out_of_bounds", origin, 2, 2),
        ("not_json", origin, 2, 3),
    ]
    assert found[0].as_dict()["value"] == {"base64": "/3s="}
    assert len(await read_dead_letters(config, kafka, start=START, limit=1)) == 1
    one = await find_dead_letter(config, kafka, found[1].id)
    assert one == found[1]
    with pytest.raises(UsageError, match="there is no dead letter '1/999'"):
        await find_dead_letter(config, kafka, "1/999")
    with pytest.raises(UsageError, match="'nonsense' is no id"):
        await find_dead_letter(config, kafka, "nonsense")


async def test_a_replay_sends_the_original_once_and_never_again(
    kafka: KafkaConfig, config: Config, topic_prefix: str
) -> None:
    origin = f"{topic_prefix}in"
    await put(kafka, config, *(dead(origin, n, value=b"v%d" % n) for n in range(1200)))
    report = await replay_dead_letters(config, kafka, start=START)
    assert (report.replayed, report.already, report.skipped, report.by_topic) == (1200, 0, 0, {origin: 1200})
    records = await read(kafka, origin)
    assert sorted(r.value or b"" for r in records) == sorted(b"v%d" % n for n in range(1200))
    assert {(r.key, r.partition, r.timestamp_ms) for r in records} == {(b"k", 2, 1700000000123)}
    assert {tuple(r.headers) for r in records} == {(("content-type", b"application/json"),)}
    again = await replay_dead_letters(config, kafka, start=START)
    assert (again.replayed, again.already) == (0, 1200)
    assert len(await read(kafka, origin)) == 1200
    assert await count_dead_letters(config, kafka, start=START) == {"waiting": 0, "already": 1200}
    assert all(x.replayed for x in await read_dead_letters(config, kafka, start=START))


async def test_only_those_that_are_kept_are_sent(
    kafka: KafkaConfig, config: Config, topic_prefix: str
) -> None:
    origin = f"{topic_prefix}in"
    await put(
        kafka,
        config,
        dead(origin, 1),
        dead(origin, 2, "out_of_bounds"),
        dead("gone", 3),
        Message(None, b"alien"),
    )
    report = await replay_dead_letters(config, kafka, start=START, keep=lambda x: x.reason == "out_of_bounds")
    assert (report.replayed, report.skipped) == (1, 0)
    report = await replay_dead_letters(config, kafka, start=START)
    assert (report.replayed, report.already, report.skipped) == (1, 1, 2)


async def test_two_replays_at_once_send_each_message_once(
    kafka: KafkaConfig, config: Config, topic_prefix: str
) -> None:
    origin = f"{topic_prefix}in"
    await put(kafka, config, *(dead(origin, n, value=b"v%d" % n) for n in range(2000)))
    results = await asyncio.gather(
        replay_dead_letters(config, kafka, start=START),
        replay_dead_letters(config, kafka, start=START),
        return_exceptions=True,
    )
    assert all(isinstance(r, RetryLater) or not isinstance(r, BaseException) for r in results), results
    await replay_dead_letters(config, kafka, start=START)
    assert sorted(r.value or b"" for r in await read(kafka, origin)) == sorted(
        b"v%d" % n for n in range(2000)
    )


async def test_without_a_dead_letter_topic_there_are_none(
    kafka: KafkaConfig, config: Config, topic_prefix: str
) -> None:
    bare = msgspec.structs.replace(config, topics=TopicsConfig(dead_letter=f"{topic_prefix}none"))
    assert await read_dead_letters(bare, kafka, start=START) == []


def test_headers_that_make_no_sense_are_empty() -> None:
    letter = from_record(Record("d", 0, 1, 5, None, b"", [("ps-offset", b"\xff"), ("ps-topic", b"\xfe")]))
    assert (letter.offset, letter.partition, letter.reason) == (-1, -1, "")
