"""Our consumer against aiokafka's own on a real broker: transactions, aborts, compaction, many batches."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from streams.chunk_fetcher import ChunkKafkaConsumer, ChunkLimits
from streams.config import KafkaConfig
from streams.kafka import TopicSpec, client_options, ensure_topics

Flat = list[tuple[int, int, int, bytes | None, bytes | None, tuple[Any, ...]]]


async def write_log(kafka: KafkaConfig, topic: str) -> None:
    plain = AIOKafkaProducer(**client_options(kafka))
    transactional = AIOKafkaProducer(transactional_id=topic, **client_options(kafka))
    await plain.start()
    await transactional.start()
    try:
        for turn in range(6):
            for number in range(50):
                headers = [("n", b"%d" % number)] if number % 3 == 0 else []
                value = None if number == 7 else b"%d-%d" % (turn, number)
                await plain.send(
                    topic, value, key=b"k%d" % (number % 9), partition=number % 2, headers=headers
                )
            await plain.flush()
            await transactional.begin_transaction()
            for number in range(20):
                await transactional.send(topic, b"t%d-%d" % (turn, number), key=b"t", partition=number % 2)
            await (transactional.abort_transaction() if turn % 2 else transactional.commit_transaction())
    finally:
        await plain.stop()
        await transactional.stop()


async def read_plain(kafka: KafkaConfig, topic: str) -> Flat:
    consumer = AIOKafkaConsumer(isolation_level="read_committed", **client_options(kafka))
    await consumer.start()
    try:
        tps = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        flat: Flat = []
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for tp, records in (await consumer.getmany(*tps, timeout_ms=200)).items():
                flat += [
                    (tp.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in records
                ]
        return sorted(flat)
    finally:
        await consumer.stop()


async def read_chunks(kafka: KafkaConfig, topic: str, limits: ChunkLimits) -> Flat:
    consumer = ChunkKafkaConsumer(
        limits=limits,
        is_batch_topic=lambda name: name == topic,
        isolation_level="read_committed",
        **client_options(kafka),
    )
    await consumer.start()
    try:
        tps = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        flat: Flat = []
        covered = dict.fromkeys(tps, 0)
        async with asyncio.timeout(20):
            while any(covered[tp] < ends[tp] for tp in tps):
                for tp, chunks in (await consumer.getmany(*tps, timeout_ms=200)).items():
                    for chunk in chunks:
                        assert chunk.first_offset == covered[tp]
                        covered[tp] = chunk.last_offset + 1
                        headers = chunk.headers or [()] * len(chunk.values)
                        flat += [
                            (tp.partition, offset, ts, key, value, tuple(extra))
                            for offset, ts, key, value, extra in zip(
                                chunk.offsets,
                                chunk.timestamps_ms,
                                chunk.keys,
                                chunk.values,
                                headers,
                                strict=True,
                            )
                        ]
        assert covered == ends
        return sorted(flat)
    finally:
        await consumer.stop()


async def test_chunks_hold_what_getmany_gives_message_by_message(
    kafka: KafkaConfig, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}log"[:100]
    await ensure_topics(kafka, {topic: TopicSpec(2)})
    await write_log(kafka, topic)
    expected = await read_plain(kafka, topic)
    assert len(expected) == 6 * 50 + 3 * 20
    for limits in (ChunkLimits(), ChunkLimits(max_messages=7), ChunkLimits(max_bytes=40, linger_ms=0)):
        assert await read_chunks(kafka, topic, limits) == expected
