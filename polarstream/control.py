"""Reading and writing the control topic, and the alerts that it is about: what the commands call."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import msgspec

from connectors.errors import TopicMissing
from polarstream.config_rules import rule_faults
from polarstream.reader import Reader, Start
from streams.control import (
    ControlRecord,
    ControlState,
    Label,
    ThresholdRule,
    check_control,
    control_key,
    matches,
)
from streams.errors import BadRecord, BrokerUnavailable, UsageError
from streams.kafka import TopicSpec, client_options, ensure_topics
from streams.layout import CONTROL_CONFIG
from streams.records import Alert

if TYPE_CHECKING:
    from collections.abc import Iterable

    from polarstream.config import Config
    from streams.config import KafkaConfig


async def read_control(config: Config, kafka: KafkaConfig) -> ControlState:
    """What the control topic says now; what can't be used is left out."""
    state = ControlState()
    try:
        async with Reader(kafka, [config.topics.control], Start("earliest")) as reader:
            async for records in reader.to_end():
                for record in records:
                    try:
                        state.apply(record.key, record.value)
                    except BadRecord:
                        continue
    except TopicMissing:
        pass
    return state


async def read_labels(config: Config, kafka: KafkaConfig) -> dict[str, Label]:
    """Which alerts were right and which were false alarms, by id, as people have said."""
    return (await read_control(config, kafka)).labels


async def write_control(
    config: Config, kafka: KafkaConfig, kind: str, identity: str, record: ControlRecord | None
) -> str:
    """Write a record, or take it back with None; returns its key once the broker has stored it.

    Raises:
        UsageError: the record is none that a worker could use, with every fault.
        BrokerUnavailable: no broker stored it.
    """
    try:
        key = control_key(kind, identity)
        if record is not None:
            check_control(key, record)
            _check_streams(config, key, record)
    except BadRecord as error:
        raise UsageError(error.detail) from error
    value = None if record is None else msgspec.json.encode(record)
    await store(config, kafka, config.topics.control, [(key.encode(), value)])
    return key


async def store(
    config: Config, kafka: KafkaConfig, topic: str, messages: Iterable[tuple[bytes, bytes | None]]
) -> None:
    """Write messages to a compacted topic, in order; returns once the broker has stored them.

    Raises:
        BrokerUnavailable: no broker stored them.
    """
    from aiokafka import AIOKafkaProducer
    from aiokafka.errors import KafkaError

    spec = TopicSpec(1, config.topics.replication_factor, CONTROL_CONFIG)
    await ensure_topics(kafka, {topic: spec})
    producer = AIOKafkaProducer(**client_options(kafka), acks="all")
    key = b""
    try:
        await producer.start()
        for key, value in messages:
            await producer.send_and_wait(topic, value, key=key)
    except (KafkaError, OSError) as error:
        raise BrokerUnavailable(
            f"{key.decode()} was not stored ({type(error).__name__}): is the broker running? "
            "polarstream doctor looks"
        ) from error
    finally:
        await producer.stop()


def _check_streams(config: Config, key: str, record: ControlRecord) -> None:
    """Check a rule against the configured streams: one that no stream can use is a slip."""
    if not isinstance(record, ThresholdRule):
        return
    streams = [stream for stream in config.streams if matches(record.stream, stream.name)]
    if not streams:
        known = ", ".join(stream.name for stream in config.streams)
        raise UsageError(f"{key}: stream '{record.stream}' matches none of {known}")
    found = [rule_faults(record, stream) for stream in streams]
    if all(found):
        told = "; ".join(f"{name}: {what}" for name, what in found[0].items())
        raise UsageError(f"{key}: {told}")


@dataclasses.dataclass
class AlertStory:
    """One alert, from all its messages and from what people said of it."""

    last: Alert
    opened: Alert
    messages: int = 1
    members: list[str] = dataclasses.field(default_factory=list)
    acknowledged: bool = False
    label: Label | None = None
    silenced_by: str | None = None

    def add(self, alert: Alert) -> None:
        """Take in a later message. Partitions tell of one group by one id, each of its own sensors."""
        self.messages += 1
        self.members = sorted({*self.members, *alert.members})
        if alert.ts >= self.last.ts:
            self.last = alert

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        plain: dict[str, Any] = msgspec.to_builtins(self.last)
        label = None if self.label is None else msgspec.to_builtins(self.label)
        silenced = self.silenced_by is not None
        return plain | {
            "members": self.members,
            "messages": self.messages,
            "opening": self.opened.explanation,
            "acknowledged": self.acknowledged,
            "silenced": silenced,
            "silenced_by": self.silenced_by,
            "label": label,
        }


async def read_alerts(config: Config, kafka: KafkaConfig, *, start: Start) -> list[AlertStory]:
    """The alerts of which there are messages from `start` to now, those that began last at the end."""
    values: list[bytes | None] = []
    try:
        async with Reader(kafka, [config.topics.alerts], start) as reader:
            async for records in reader.to_end():
                values += [record.value for record in records]
    except TopicMissing:
        return []
    return tell_alerts(values, await read_control(config, kafka), _sites(config))


def tell_alerts(
    values: Iterable[bytes | None], control: ControlState, sites: dict[str, Any] | None = None
) -> list[AlertStory]:
    """Put the messages of alerts together.

    Args:
        values: of the alerts topic, in order by partition; what is no alert is left out.
        control: what people have said.
        sites: for each stream's name, what gives a sensor's site.
    """
    stories: dict[str, AlertStory] = {}
    for value in values:
        try:
            alert = msgspec.json.decode(value or b"", type=Alert)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        story = stories.get(alert.id)
        if story is None:
            stories[alert.id] = AlertStory(alert, alert, members=list(alert.members))
        else:
            story.add(alert)
    for identity, story in stories.items():
        last = story.last
        acks = control.acks
        story.acknowledged = last.acknowledged or identity in acks or last.group_id in acks
        story.label = control.labels.get(identity)
        stream, source = last.key.partition("/")[0], last.source
        of_site = (sites or {}).get(stream)
        is_site = last.scope in ("group", "link") or of_site is None
        site = source if is_site else of_site(source)  # type: ignore[misc]
        about = (stream, source, site, last.field, last.rule)
        story.silenced_by = last.silenced_by or control.silenced_by(last.ts, *about)
    return sorted(stories.values(), key=lambda story: (story.last.started_at, story.last.id))


async def find_alert(config: Config, kafka: KafkaConfig, identity: str) -> AlertStory:
    """The alert whose id begins like this.

    Raises:
        UsageError: there is none, or more than one.
    """
    found = [
        story
        for story in await read_alerts(config, kafka, start=Start("earliest"))
        if story.last.id.startswith(identity)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"there is no alert '{identity}' (any more): alerts list --all shows what there is")
    raise UsageError(f"'{identity}' begins {len(found)} ids of alerts: write more of it")


def _sites(config: Config) -> dict[str, Any]:
    import re

    from anomaly.thresholds import identify

    found: dict[str, Any] = {}
    for stream in config.streams:
        pattern = re.compile(stream.sensor_pattern) if stream.sensor_pattern else None
        found[stream.name] = lambda sensor, s=stream.name, p=pattern: identify(sensor, s, p).site
    return found
