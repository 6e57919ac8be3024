"""Publishing a file or a pipe: the plan from configuration and options, and carrying it out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, get_args

import msgspec

from connectors.errors import BadInput, TopicMissing
from connectors.source import Message
from polarstream.ingest import (
    CsvReadings,
    Format,
    JsonLines,
    LineSplitter,
    RawLines,
    blocks,
    guess_format,
    open_input,
)
from polarstream.target import find_stream, resolve_topic
from polarstream.topics import partition_counts
from streams.errors import UsageError

if TYPE_CHECKING:
    from connectors.publisher import Publisher
    from polarstream.config import Config
    from streams.config import KafkaConfig


class PublishPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to publish where. `path` None: stdin."""

    topic: str
    path: Path | None
    format: Format
    id_field: str | None
    time_field: str | None

    @classmethod
    def of(
        cls,
        config: Config,
        topic: str,
        path: Path | None,
        format_: str | None = None,
        id_field: str | None = None,
        time_field: str | None = None,
    ) -> PublishPlan:
        """The plan for a stream or topic, where an option wins over the stream's own settings.

        Raises:
            UsageError: there is no such format.
        """
        if format_ is not None and format_ not in get_args(Format):
            raise UsageError(f"there is no format '{format_}': use {', '.join(get_args(Format))}")
        stream = find_stream(config, topic)
        return cls(
            topic=resolve_topic(config, topic),
            path=path,
            format=next((f for f in get_args(Format) if f == format_), guess_format(path)),
            id_field=id_field or (stream.id_field if stream else "sensor_id"),
            time_field=time_field or (stream.time_field if stream else "ts"),
        )


class _Lines(Protocol):
    def messages(self, lines: Sequence[bytes]) -> Iterable[Message]: ...


async def publish_file(
    kafka: KafkaConfig, plan: PublishPlan, progress: Callable[[int, int, int], None] | None = None
) -> int:
    """Publish all of it, lines of a pipe as they come; returns how many, all of them acknowledged.

    Args:
        kafka: how the brokers are reached.
        plan: what and where.
        progress: called with (bytes read, size in bytes or 0, messages).

    Raises:
        BadInput: a line cannot be sent; those before it were.
        TopicMissing: there is no such topic.
        RetryLater: the broker did not take the messages in time.
    """
    from connectors.publisher import Publisher

    lines = _reader(plan)
    size = plan.path.stat().st_size if plan.path is not None and plan.path.is_file() else 0
    if plan.path is not None and plan.path.suffix == ".gz":
        size = 0
    # stdin without its buffer, whose lock a read that waits would hold against the end of the process
    file = (
        open_input(plan.path) if plan.path is not None else getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    )
    splitter = LineSplitter()
    sent = done = 0
    try:
        async with Publisher(kafka) as publisher:
            await publisher.partitions(plan.topic)  # a wrong name is told before anything is read
            try:
                async with contextlib.aclosing(blocks(file)) as found:
                    async for data in found:
                        sent += await _publish(publisher, plan.topic, lines.messages(splitter.feed(data)))
                        done += len(data)
                        if progress is not None:
                            progress(done, size, sent)
                sent += await _publish(publisher, plan.topic, lines.messages(splitter.close()))
            finally:
                await publisher.flush()
    finally:
        if plan.path is not None:
            file.close()
    return sent


async def _publish(publisher: Publisher, topic: str, messages: Iterable[Message]) -> int:
    """Publish, also what comes before a line that cannot be sent."""
    good: list[Message] = []
    try:
        good.extend(messages)  # keeps what came before an error
    except BadInput:
        await publisher.publish(topic, good)
        raise
    return await publisher.publish(topic, good)


async def ensure_stream_topic(config: Config, kafka: KafkaConfig, name: str) -> None:
    """Make the topic if it is one of a configured stream, as a worker would."""
    stream = find_stream(config, name)
    if stream is None:
        return
    try:
        await partition_counts(kafka, [stream.topic])
    except TopicMissing:
        from streams.layout import lay_out  # loads Faust, which takes half a second

        await lay_out(kafka, config.app_id, [stream], config.topics)


def _reader(plan: PublishPlan) -> _Lines:
    if plan.format == "csv":
        return CsvReadings(plan.id_field, plan.time_field)
    if plan.format == "raw":
        return RawLines()
    return JsonLines(plan.id_field)
