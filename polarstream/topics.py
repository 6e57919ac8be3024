"""Topics and consumer groups as an operator sees them: sizes, settings, lag."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from connectors.errors import TopicMissing
from streams.errors import BrokerUnavailable, UsageError
from streams.kafka import TopicSpec, client_options, ensure_topics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from aiokafka import AIOKafkaConsumer
    from aiokafka.admin import AIOKafkaAdminClient

    from polarstream.config import Config
    from streams.config import KafkaConfig


class TopicSummary(msgspec.Struct, frozen=True):
    """One line of the list of topics. `messages` counts offsets between first and end, over partitions."""

    name: str
    partitions: int
    replication: int
    messages: int
    internal: bool


class PartitionDetail(msgspec.Struct, frozen=True):
    """One partition; `end` is the offset that the next message gets."""

    partition: int
    leader: int
    first: int
    end: int


class GroupLag(msgspec.Struct, frozen=True):
    """How far a consumer group is behind on one topic. Partitions without a commit count from their start."""

    group: str
    topic: str
    lag: int
    #: partition -> (committed offset or None, lag)
    partitions: dict[int, tuple[int | None, int]]


class TopicDetail(msgspec.Struct, frozen=True):
    """A topic with its partitions, its settings that differ from the default, and its readers."""

    name: str
    replication: int
    partitions: list[PartitionDetail]
    configs: dict[str, str]
    groups: list[GroupLag]


async def list_topics(kafka: KafkaConfig, *, internal: bool = False) -> list[TopicSummary]:
    """All topics by name; Kafka's own and changelogs only with `internal`."""
    async with _clients(kafka) as (admin, consumer):
        found = {t["topic"]: t for t in await admin.describe_topics()}
        shown = sorted(n for n, t in found.items() if internal or not (t["is_internal"] or _is_changelog(n)))
        bounds = await _bounds(consumer, {name: found[name] for name in shown})
        return [
            TopicSummary(
                name,
                len(found[name]["partitions"]),
                _replication(found[name]),
                sum(end - first for first, end in bounds[name].values()),
                bool(found[name]["is_internal"]) or _is_changelog(name),
            )
            for name in shown
        ]


async def create_topic(kafka: KafkaConfig, name: str, spec: TopicSpec) -> bool:
    """Make a topic; false when it was there already.

    Raises:
        UsageError: the name is not one that Kafka takes.
        Stop: the broker refused.
    """
    import re

    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name) or name in (".", ".."):
        raise UsageError(
            f"'{name}' is no topic name: use up to 249 letters, digits, dots, dashes, underscores"
        )
    return name in await ensure_topics(kafka, {name: spec})


async def delete_topics(kafka: KafkaConfig, names: Sequence[str]) -> None:
    """Delete topics with all that is in them; those that do not exist are no error."""
    if names:
        async with _admin(kafka) as admin:
            await admin.delete_topics(list(names))


async def create_configured(config: Config, kafka: KafkaConfig) -> list[str]:
    """Make all topics that the configuration names, as a worker does; returns those that were missing."""
    from streams.layout import lay_out, partition_counts

    before = await partition_counts(kafka)
    await lay_out(kafka, config.app_id, config.inputs, config.topics)
    return sorted(set(await partition_counts(kafka)) - set(before))


async def describe_topic(kafka: KafkaConfig, name: str) -> TopicDetail:
    """Everything about one topic.

    Raises:
        TopicMissing: there is no such topic.
    """
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    async with _clients(kafka) as (admin, consumer):
        found = {t["topic"]: t for t in await admin.describe_topics()}
        if name not in found:
            raise TopicMissing(name, found)
        bounds = (await _bounds(consumer, {name: found[name]}))[name]
        responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        configs = _changed_configs(responses)
        groups = [lag for lag in await _all_lags(admin, {name: bounds}) if lag.topic == name]
        leaders = {p["partition"]: p["leader"] for p in found[name]["partitions"]}
        return TopicDetail(
            name,
            _replication(found[name]),
            [PartitionDetail(p, leaders[p], *bounds[p]) for p in sorted(bounds)],
            configs,
            groups,
        )


async def group_lag(kafka: KafkaConfig, group: str) -> list[GroupLag]:
    """The lag of one group on every topic that it has committed offsets for."""
    async with _clients(kafka) as (admin, consumer):
        if group not in {str(entry[0]) for entry in await admin.list_consumer_groups()}:
            return []  # to ask for it would wait for a coordinator that a fresh broker does not have
        committed = await admin.list_consumer_group_offsets(group)
        names = {partition.topic for partition in committed}
        found = {t["topic"]: t for t in await admin.describe_topics() if t["topic"] in names}
        return _lags(group, committed, await _bounds(consumer, found))


async def partition_counts(kafka: KafkaConfig, topics: Iterable[str]) -> dict[str, int]:
    """How many partitions each topic has.

    Raises:
        TopicMissing: one of them does not exist.
    """
    async with _admin(kafka) as admin:
        # all topics: asking for one by name may make the broker create it
        found = {t["topic"]: len(t["partitions"]) for t in await admin.describe_topics()}
    for topic in topics:
        if topic not in found:
            raise TopicMissing(topic, found)
    return {topic: found[topic] for topic in topics}


@asynccontextmanager
async def _admin(kafka: KafkaConfig) -> AsyncIterator[AIOKafkaAdminClient]:
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    admin = AIOKafkaAdminClient(**client_options(kafka))
    try:
        await admin.start()
        yield admin
    except (KafkaError, OSError, TimeoutError) as error:
        servers = ", ".join(kafka.bootstrap_servers)
        raise BrokerUnavailable(
            f"no answer from Kafka at {servers} ({type(error).__name__}): is it running, and do the security "
            "settings fit? polarstream doctor looks"
        ) from error
    finally:
        await admin.close()


@asynccontextmanager
async def _clients(kafka: KafkaConfig) -> AsyncIterator[tuple[AIOKafkaAdminClient, AIOKafkaConsumer]]:
    from aiokafka import AIOKafkaConsumer

    async with _admin(kafka) as admin:
        consumer = AIOKafkaConsumer(**client_options(kafka), group_id=None, enable_auto_commit=False)
        try:
            await consumer.start()
            yield admin, consumer
        finally:
            await consumer.stop()


async def _bounds(
    consumer: AIOKafkaConsumer, topics: Mapping[str, Any]
) -> dict[str, dict[int, tuple[int, int]]]:
    """(first, end) offset of every partition, by topic."""
    from aiokafka import TopicPartition

    partitions = [TopicPartition(n, p["partition"]) for n, t in topics.items() for p in t["partitions"]]
    bounds: dict[str, dict[int, tuple[int, int]]] = {name: {} for name in topics}
    if partitions:
        # offsets are asked of the leaders, which are known for assigned topics only
        consumer.assign(partitions)
        first = await consumer.beginning_offsets(partitions)
        end = await consumer.end_offsets(partitions)
        for partition in partitions:
            bounds[partition.topic][partition.partition] = (first[partition], end[partition])
    return bounds


async def _all_lags(
    admin: AIOKafkaAdminClient, bounds: Mapping[str, Mapping[int, tuple[int, int]]]
) -> list[GroupLag]:
    found: list[GroupLag] = []
    for group in sorted({str(entry[0]) for entry in await admin.list_consumer_groups()}):
        found.extend(_lags(group, await admin.list_consumer_group_offsets(group), bounds))
    return found


def _lags(
    group: str, committed: Mapping[Any, Any], bounds: Mapping[str, Mapping[int, tuple[int, int]]]
) -> list[GroupLag]:
    """Lag per topic, from committed offsets and the bounds of the logs.

    What retention deleted before it was read is no lag.
    """
    by_topic: dict[str, dict[int, int]] = {}
    for partition, commit in committed.items():
        if partition.topic in bounds and commit.offset >= 0:
            by_topic.setdefault(partition.topic, {})[partition.partition] = commit.offset
    lags: list[GroupLag] = []
    for topic, offsets in sorted(by_topic.items()):
        parts: dict[int, tuple[int | None, int]] = {}
        for number, (first, end) in sorted(bounds[topic].items()):
            offset = offsets.get(number)
            parts[number] = (offset, max(0, end - max(first, offset or 0)))
        lags.append(GroupLag(group, topic, sum(lag for _, lag in parts.values()), parts))
    return lags


def _changed_configs(responses: Iterable[Any]) -> dict[str, str]:
    """The settings of a topic that were set on it (source 1: the topic itself)."""
    configs: dict[str, str] = {}
    for response in responses:
        for _code, _message, _kind, _name, entries in response.resources:
            for entry in entries:
                name, value, _read_only, source = entry[0], entry[1], entry[2], entry[3]
                if source == 1:
                    configs[name] = value
    return dict(sorted(configs.items()))


def _replication(topic: Mapping[str, Any]) -> int:
    return max((len(p["replicas"]) for p in topic["partitions"]), default=0)


def _is_changelog(name: str) -> bool:
    return name.endswith("-changelog") or name.startswith("__")
