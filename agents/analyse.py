"""The analyse agent: statistics of windows of event time, by sensor and field, to the analytics topic.

It reads the same chunks as the detect agent, applies the same transforms, and keeps its open windows in the
same checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streams import metrics
from streams.app import StreamApp
from streams.checkpoint import InputPartition
from streams.config import StreamConfig, TopicsConfig
from streams.records import ReadingBatch
from streams.state import BlobState, SensorState
from streams.transforms import Pipeline
from streams.windows import WindowAggregator, WindowResult

_encode = msgspec.json.Encoder().encode


class AnalysePartition:
    """The analyse agent's state for one input partition."""

    def __init__(self, stream: StreamConfig, changelog: Mapping[bytes, bytes]) -> None:
        self._stream = stream
        fingerprint = stream.windows_fingerprint()
        self._transforms = Pipeline(stream.fields)
        parts: dict[str, Callable[[int], NDArray[np.void]]] = {"transforms": self._transforms.init}
        self._sensors = SensorState("analyse", fingerprint, parts)
        self._windows = WindowAggregator(stream.windows, stream.field_names, stream.name)
        self._blob = BlobState("windows", fingerprint)
        self._applied = -1
        self._changed = False
        saved = self._blob.load(changelog)
        if saved is not None:
            windows, shards = msgspec.msgpack.decode(saved[0], type=tuple[bytes, dict[bytes, bytes]])
            if self._windows.restore(windows):
                self._sensors.restore(shards)
                self._applied = saved[1]
        self._late = dict(self._windows.late)
        #: Whether there was state of another configuration.
        self.dropped = self._applied < 0 and any(key.startswith(b"blob/windows/") for key in changelog)

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        """Take what has changed since the last checkpoint; see `streams.checkpoint.Participant`."""
        if not self._changed:
            return []
        self._changed = False
        # one blob, so that windows and transforms are always of one offset
        state = msgspec.msgpack.encode((self._windows.snapshot(), dict(self._sensors.dump())))
        return self._blob.dump(state, self._applied)

    def process(self, batch: ReadingBatch) -> list[WindowResult]:
        """Add a batch to the windows and return those that close."""
        fresh = batch.offsets > self._applied
        if not fresh.any():
            return []
        ids, values, ts = batch.sensor_ids, batch.values, batch.ts
        if not fresh.all():
            picked = np.flatnonzero(fresh)
            ids, values, ts = [ids[at] for at in picked.tolist()], values[picked], ts[picked]
        if self._transforms.active:
            rows = self._sensors.locate(ids)
            values = self._transforms.apply(self._sensors.rows["transforms"], rows, values, ts)
        results = self._windows.add(ids, values, ts)
        self._applied = batch.last_offset
        self._changed = True
        for window, late in self._windows.late.items():
            if late > self._late[window]:
                metrics.LATE.labels(batch.stream, window).inc(late - self._late[window])
                self._late[window] = late
        return results


def make_analyse_agent(app: StreamApp, topic: Any, config: StreamConfig, topics: TopicsConfig) -> Any:
    """Declare the agent that keeps the windows of a stream.

    Args:
        app: the application.
        topic: the stream's `streams.topics.ReadingTopic`.
        config: the stream, with at least one window.
        topics: names of the output topics.
    """
    role = f"analyse-{config.name}"

    def opened(partition: InputPartition) -> AnalysePartition:
        share = AnalysePartition(config, partition.table.contents(partition.tp.partition))
        if share.dropped:
            app.log.warning(
                "stream %r: its fields, transforms or windows have changed, so the open windows of partition "
                "%s are dropped",
                config.name,
                partition.tp.partition,
            )
        partition.participants[role] = share
        return share

    @app.agent(topic, name=role, concurrency=app.actors(config))  # type: ignore[untyped-decorator]
    async def analyse(batches: Any) -> None:
        async for batch in batches:
            partition = app.input_partition(batch)
            async with partition.turn(role, batch):
                share: Any = partition.participants.get(role) or opened(partition)
                if not len(batch):
                    continue
                results = share.process(batch)
                keys: list[bytes | None] = [result.sensor.encode() for result in results]
                values = [_encode(result) for result in results]
                await partition.emitter.emit(topics.analytics, batch.partition, keys, values)
                for result in results:
                    metrics.ANALYTICS.labels(result.stream, result.window).inc()

    return analyse
