"""Backtest of what a topic holds: its messages through the decoder and the detector of a worker."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from agents.detect import DetectPartition, StreamDetector
from polarstream.backtest import Scored, mask_training
from polarstream.reader import Reader, Record, Start
from polarstream.recording import Recording
from streams.codecs import ReadingCodec
from streams.records import Alert, Chunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from anomaly.verdict import Verdict
    from streams.config import KafkaConfig, StreamConfig


@dataclass(slots=True)
class _Sensor:
    """What was said of one sensor, reading by reading, or of one group of sensors, row by row."""

    ts: list[float] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    is_anomaly: list[bool] = field(default_factory=list)
    worst: list[int] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TopicResult:
    """One result a sensor, then one a group of sensors; and the refused messages by their reason."""

    sensors: list[Scored]
    refused: dict[str, int]


class TopicBacktest:
    """Takes messages of a stream's topic in log order by partition; each partition has its own state.

    Args:
        stream: the stream, with the detector to try.
        train: no anomaly is reported in so many readings at the start of each sensor.
    """

    def __init__(self, stream: StreamConfig, *, train: int = 0) -> None:
        self._shared = StreamDetector(stream)
        self._codec = ReadingCodec(stream)
        self._train = train
        self._shares: dict[int, DetectPartition] = {}
        self._sensors: dict[str, _Sensor] = {}
        self._groups: dict[str, _Sensor] = {}
        self._refused: dict[str, int] = {}

    def take(self, records: list[Record], now: float) -> None:
        """Score messages.

        Args:
            records: of any partitions, in order by partition.
            now: seconds since the epoch: readings far beyond it are refused, as a worker refuses them.
        """
        by_partition: dict[int, list[Record]] = {}
        for record in records:
            by_partition.setdefault(record.partition, []).append(record)
        for partition, some in by_partition.items():
            self._process(partition, some, now)

    def result(self) -> TopicResult:
        """Return what was said so far, by sensor and then by group."""
        stream = self._shared.stream
        found = self._scored(self._sensors, stream.field_names)
        if stream.join is not None:
            found += self._scored(self._groups, tuple(stream.join.members))
        return TopicResult(found, self._refused)

    def _scored(self, book: dict[str, _Sensor], names: tuple[str, ...]) -> list[Scored]:
        results = []
        for name, seen in sorted(book.items()):
            stamps = [datetime.fromtimestamp(ts, UTC).isoformat().replace("+00:00", "Z") for ts in seen.ts]
            values = np.array(seen.values).reshape(len(seen.ts), len(names))
            recording = Recording(name, names, stamps, np.arange(len(stamps)), np.array(seen.ts), values)
            scored = Scored(
                recording, np.array(seen.ratio), np.array(seen.is_anomaly), np.array(seen.worst), seen.alerts
            )
            results.append(mask_training(scored, self._train))
        return results

    def _process(self, partition: int, records: list[Record], now: float) -> None:
        chunk = Chunk(
            topic=records[0].topic,
            partition=partition,
            first_offset=records[0].offset,
            last_offset=records[-1].offset,
            offsets=[record.offset for record in records],
            timestamps_ms=[record.timestamp_ms for record in records],
            keys=[record.key for record in records],
            values=[record.value for record in records],
            headers=[record.headers for record in records] if any(r.headers for r in records) else [],
        )
        batch = self._codec.decode(chunk, now)
        for rejected in batch.rejected:
            self._refused[rejected.reason] = self._refused.get(rejected.reason, 0) + 1
        share = self._shares.setdefault(partition, DetectPartition(self._shared, {}))
        # the transforms make new arrays: these are the values as they were measured
        outcome = share.process(batch, now)
        verdict = outcome.verdict
        if verdict is None:
            return
        _note(self._sensors, batch.sensor_ids, batch.ts, batch.values, verdict)
        joint = outcome.joint
        if joint is not None and joint.verdict is not None:
            _note(self._groups, joint.groups, joint.ts, joint.values, joint.verdict)
        for value in outcome.alerts.values:
            alert = msgspec.json.decode(value or b"", type=Alert)
            source = (self._groups if alert.rule == "join" else self._sensors).get(alert.source)
            # budgets and groups of alerts are of no single sensor
            if source is not None:
                source.alerts.append(alert)


def _note(
    book: dict[str, _Sensor],
    names: list[str],
    ts: NDArray[np.float64],
    values: NDArray[np.float64],
    verdict: Verdict,
) -> None:
    """Write down what was said of each reading, or of each row of a group."""
    said = zip(
        names,
        ts.tolist(),
        values.tolist(),
        verdict.ratio.tolist(),
        verdict.is_anomaly.tolist(),
        verdict.field.tolist(),
        strict=True,
    )
    for name, at, row, ratio, is_anomaly, worst in said:
        sensor = book.setdefault(name, _Sensor())
        sensor.ts.append(at)
        sensor.values.append(row)
        sensor.ratio.append(0.0 if math.isnan(ratio) else ratio)
        sensor.is_anomaly.append(is_anomaly)
        sensor.worst.append(worst)


async def backtest_topic(
    kafka: KafkaConfig,
    stream: StreamConfig,
    *,
    start: Start,
    until_s: float | None = None,
    train: int = 0,
    progress: Callable[[int], None] | None = None,
) -> TopicResult:
    """Score what a stream's topic holds now.

    Args:
        kafka: how the brokers are reached.
        stream: what is read and how it is scored.
        start: where to begin.
        until_s: messages published from then on are left out, seconds since the epoch.
        train: see `TopicBacktest`.
        progress: told how many messages are read.
    """
    run = TopicBacktest(stream, train=train)
    now, count = time.time(), 0
    async with Reader(kafka, [stream.topic], start) as reader:
        async for records in reader.to_end():
            if until_s is not None:
                records = [record for record in records if record.timestamp_ms < until_s * 1000]
            if records:
                run.take(records, now)
            count += len(records)
            if progress is not None:
                progress(count)
    return run.result()
