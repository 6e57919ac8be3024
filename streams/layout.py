"""The topics of a worker: which there are, with how many partitions, and how they follow their inputs.

A prediction goes to the same partition number as its reading, and state is kept by the same number. So the
output topics have at least as many partitions as the largest input, and each changelog exactly as many as
its input. When an input gets more partitions while workers run, the others follow.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from streams.changelog import CHANGELOG_CONFIG
from streams.config import FrameStreamConfig, KafkaConfig, RequestsConfig, StreamConfig, TopicsConfig
from streams.errors import Stop
from streams.kafka import TopicSpec, client_options, ensure_topics

AnyStream: TypeAlias = StreamConfig | FrameStreamConfig | RequestsConfig

#: Of the topics of control and models: they are read whole at each start of a worker.
CONTROL_CONFIG = {"cleanup.policy": "compact", "segment.ms": str(3_600_000)}
#: How long new partitions may take to show, in seconds.
GROW_S = 15


def state_table(stream: AnyStream) -> str:
    """Name of the Faust table that keeps the state of a stream."""
    return f"{stream.name}-state"


def changelog_topic(app_id: str, stream: AnyStream) -> str:
    """Name of the topic that keeps the state of a stream."""
    return f"{app_id}-{state_table(stream)}-changelog"


@dataclass(frozen=True)
class Layout:
    """Partitions that topics have and should have.

    Attributes:
        inputs: partitions of the input topics as they are.
        missing: partitions that other topics should have and have not, by topic.
    """

    inputs: Mapping[str, int]
    missing: Mapping[str, int]


def plan(
    app_id: str, streams: Sequence[AnyStream], topics: TopicsConfig, present: Mapping[str, int]
) -> Layout:
    """Work out which topics must grow.

    Args:
        app_id: the consumer group.
        streams: the configured streams.
        topics: names of the output topics.
        present: partitions of the topics that exist.
    """
    inputs = {stream.topic: present.get(stream.topic, stream.partitions) for stream in streams}
    widest = max(inputs.values(), default=1)
    wanted = dict.fromkeys((topics.predictions, topics.alerts, topics.analytics, topics.dead_letter), widest)
    for stream in streams:
        if isinstance(stream, RequestsConfig):
            # without a partition that a client names, an answer goes to that of its request
            wanted[stream.results_topic] = max(stream.results_partitions, inputs[stream.topic])
    wanted |= {changelog_topic(app_id, stream): inputs[stream.topic] for stream in streams}
    return Layout(inputs, {name: n for name, n in wanted.items() if present.get(name, 0) < n})


async def lay_out(
    kafka: KafkaConfig, app_id: str, streams: Sequence[AnyStream], topics: TopicsConfig
) -> Layout:
    """Make the topics that are missing and grow those that are too narrow.

    Returns:
        The layout as it was found; `missing` says what has been made or grown.

    Raises:
        BrokerUnavailable: no broker answered.
        Stop: the broker refused.
    """
    storage = {
        "retention.ms": str(topics.retention_hours * 3_600_000),
        "retention.bytes": str(topics.retention_bytes),
        "segment.bytes": str(max(1 << 20, min(256 << 20, topics.retention_bytes // 4))),
    }
    replication = topics.replication_factor
    inputs = {stream.topic: TopicSpec(stream.partitions, replication, storage) for stream in streams}
    await ensure_topics(
        kafka,
        {
            **inputs,
            topics.control: TopicSpec(1, replication, CONTROL_CONFIG),
            topics.models: TopicSpec(1, replication, CONTROL_CONFIG),
        },
    )
    present = await partition_counts(kafka)
    layout = plan(app_id, streams, topics, present)
    changelogs = {changelog_topic(app_id, stream) for stream in streams}
    await ensure_topics(
        kafka,
        {
            name: TopicSpec(n, replication, CHANGELOG_CONFIG if name in changelogs else storage)
            for name, n in layout.missing.items()
            if name not in present
        },
    )
    growing = {name: n for name, n in layout.missing.items() if name in present}
    if growing:
        await _grow(kafka, growing)
    return layout


async def partition_counts(kafka: KafkaConfig) -> dict[str, int]:
    """Ask the brokers how many partitions each topic has."""
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(**client_options(kafka))
    await admin.start()
    try:
        described: list[dict[str, Any]] = await admin.describe_topics()
    finally:
        await admin.close()
    return {topic["topic"]: len(topic["partitions"]) for topic in described}


async def _grow(kafka: KafkaConfig, wanted: Mapping[str, int]) -> None:
    from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

    admin = AIOKafkaAdminClient(**client_options(kafka))
    await admin.start()
    try:
        await admin.create_partitions({name: NewPartitions(total_count=n) for name, n in wanted.items()})
    finally:
        await admin.close()
    deadline = time.monotonic() + GROW_S
    while True:
        counts = await partition_counts(kafka)
        narrow = [name for name, n in wanted.items() if counts[name] < n]
        if not narrow:
            return
        if time.monotonic() > deadline:
            raise Stop(f"the broker did not give {narrow} more partitions: alter these topics by hand")
        await asyncio.sleep(0.1)
