"""What every process counts. `docs/metrics.md` lists it all; a test compares the two."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from streams.records import Chunk, ReadingBatch

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)


def _counter(name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
    return Counter(f"polarstream_{name}", help_text, labels, registry=REGISTRY)


def _gauge(name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
    return Gauge(f"polarstream_{name}", help_text, labels, registry=REGISTRY)


def _histogram(name: str, help_text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
    return Histogram(f"polarstream_{name}", help_text, labels, buckets=tuple(buckets), registry=REGISTRY)


MESSAGES_IN = _counter("messages_in", "Kafka messages read.", ["stream"])
READINGS = _counter("readings", "Readings scored.", ["stream"])
REPLAYED = _counter(
    "replayed", "Readings read again after a restart and skipped: already applied.", ["stream"]
)
PREDICTIONS = _counter("predictions", "Predictions written.", ["stream"])
ALERTS = _counter("alerts", "Alert messages written.", ["stream", "state"])
ALERTS_OPEN = _gauge("alerts_open", "Alerts that are firing on this worker.", ["stream"])
ALERTS_SUPPRESSED = _counter("alerts_suppressed", "Alerts that a budget held back.", ["stream", "group"])
ALERTS_SILENCED = _counter("alerts_silenced", "Alert messages marked as silenced.", ["stream", "cause"])
ALERT_GROUPS = _counter("alert_groups", "Groups of alerts that got an alert of their own.", ["stream"])
JOINED = _counter("joined", "Rows made of the readings of a group's sensors and scored.", ["stream"])
JOIN_INCOMPLETE = _counter(
    "join_incomplete", "Times that a group was due to be scored and members were missing.", ["stream"]
)
SILENT_SOURCES = _counter("silent_sources", "Alerts about sources that fell silent.", ["stream", "scope"])
CONTROL_RECORDS = _counter("control_records", "Records of the control topic taken in.", ["kind"])
CONTROL_REFUSED = _counter("control_refused", "Records of the control topic that can't be used.")
DEAD_LETTERS = _counter("dead_letters", "Messages sent to the dead-letter topic.", ["stream", "reason"])
ANALYTICS = _counter("analytics", "Window results written.", ["stream", "window"])
LATE = _counter("late_readings", "Readings too late for their window.", ["stream", "window"])
LOST = _counter("lost", "Messages missing in the numbering of their publisher.", ["stream"])
DUPLICATED = _counter(
    "duplicated", "Messages that came twice by the numbering of their publisher.", ["stream"]
)
EXPIRED = _counter("expired", "Offsets that retention deleted before they were read.", ["topic"])
CHUNK_MESSAGES = _histogram(
    "chunk_messages", "Messages in a chunk.", ["stream"], (1, 4, 16, 64, 256, 1024, 4096, 16384)
)
STAGE_SECONDS = _counter("stage_seconds", "Time spent in a stage.", ["stream", "stage"])
STATE_ROWS = _gauge("state_rows", "Sensors with state on this worker.", ["stream"])
LAG = _gauge("lag", "Messages in the log that are not processed yet.", ["topic", "partition"])
REBALANCES = _counter("rebalances", "Changes of the partition assignment.")
PARTITIONS = _gauge("partitions", "Input partitions assigned to this worker.")
CHECKPOINTS = _counter("checkpoints", "Checkpoints made.")
CHECKPOINT_BYTES = _counter("checkpoint_bytes", "State written to changelogs.")
CHECKPOINT_SECONDS = _histogram(
    "checkpoint_seconds",
    "Duration of a checkpoint.",
    [],
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
FRAMES = _counter("frames", "Frames taken in.", ["stream"])
FRAMES_DROPPED = _counter(
    "frames_dropped", "Frames never answered, by the policy of their stream.", ["stream", "reason"]
)
FRAMES_LATE = _counter("frames_late", "Frames answered after their deadline.", ["stream"])
REQUESTS = _counter("requests", "Requests answered.", ["status"])
DECODE_SECONDS = _counter("decode_seconds", "Time that threads spent on decoding pictures.", ["stream"])
INFER_SECONDS = _counter(
    "infer_seconds",
    "queue: of items waiting; prepare, compute, post: of batches.",
    ["model", "version", "stage"],
)
INFER_QUEUE = _gauge("infer_queue", "Items that wait for a batch.", ["model", "version"])
BATCH_FRAMES = _histogram(
    "batch_frames", "Items in a batch.", ["model", "version"], (1, 2, 4, 8, 16, 32, 64, 128)
)
CACHE_HITS = _counter(
    "cache_hits", "Frames answered by the cache: the same bytes, or a picture alike.", ["stream", "kind"]
)
TRIAL_SAMPLES = _gauge(
    "trial_samples", "Frames that a version on trial was compared over.", ["model", "version"]
)
TRIAL_AGREEMENT = _gauge(
    "trial_agreement", "Mean agreement of a version on trial with the live one.", ["model", "version"]
)
TRIAL_LATENCY_RATIO = _gauge(
    "trial_latency_ratio", "Seconds of a version on trial by those of the live one.", ["model", "version"]
)
DEVICE_BATCHES = _gauge("device_batches", "Batches that a device has answered.", ["device"])
DEVICE_BUSY = _gauge("device_busy_seconds", "Time that a device has spent on batches.", ["device"])
DEVICE_WAITING = _gauge("device_waiting", "Batches that wait or run on a device.", ["device"])
DEVICE_FAILOVERS = _gauge(
    "device_failovers", "Batches that went elsewhere because a device failed.", ["device"]
)
DEVICE_IN_SERVICE = _gauge("device_in_service", "1 while a device gets batches.", ["device"])
PUBLISHED = _counter("published", "Messages published by a source or client of this process.", ["topic"])


class StreamCounters:
    """The counters that every chunk of a stream raises, looked up once: that costs more than the count."""

    def __init__(self, stream: str) -> None:
        self.messages_in = MESSAGES_IN.labels(stream)
        self.chunk_messages = CHUNK_MESSAGES.labels(stream)
        self.readings = READINGS.labels(stream)
        self.predictions = PREDICTIONS.labels(stream)
        self.lost = LOST.labels(stream)
        self.duplicated = DUPLICATED.labels(stream)
        self.decode_s = STAGE_SECONDS.labels(stream, "decode")
        self.score_s = STAGE_SECONDS.labels(stream, "score")
        self.emit_s = STAGE_SECONDS.labels(stream, "emit")


@functools.cache
def of_stream(stream: str) -> StreamCounters:
    """The counters of a stream."""
    return StreamCounters(stream)


class LatencyHistogram(Collector):
    """Seconds from a message's Kafka timestamp to its prediction, counted a whole chunk at a time."""

    BOUNDS = np.array([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60])

    def __init__(self) -> None:
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, stream: str, latency_s: NDArray[np.float64]) -> None:
        """Count latencies in seconds: float64 [n]."""
        buckets = np.searchsorted(self.BOUNDS, latency_s)
        counts = np.bincount(buckets, minlength=len(self.BOUNDS) + 1)
        self._counts[stream] = self._counts.get(stream, 0) + counts
        self._sums[stream] = self._sums.get(stream, 0.0) + float(latency_s.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Give the histogram to the registry."""
        family = HistogramMetricFamily(
            "polarstream_latency_seconds",
            "From a message's Kafka timestamp to its prediction.",
            labels=["stream"],
        )
        for stream, counts in self._counts.items():
            bounds = [*(str(bound) for bound in self.BOUNDS), "+Inf"]
            cumulated = np.cumsum(counts)
            buckets = list(zip(bounds, cumulated.tolist(), strict=True))
            family.add_metric([stream], buckets, self._sums[stream])
        yield family


LATENCY = LatencyHistogram()
REGISTRY.register(LATENCY)


def note_decoded(batch: ReadingBatch, chunk: Chunk, seconds: float) -> None:
    """Count one decoded chunk."""
    counters = of_stream(batch.stream)
    counters.messages_in.inc(len(chunk.values))
    counters.chunk_messages.observe(len(chunk.values))
    counters.decode_s.inc(seconds)


def serve(host: str, port: int) -> int:
    """Serve the metrics over HTTP, on a thread of its own.

    Args:
        host: address to listen on.
        port: port, or 0 for any free one.

    Returns:
        The port.
    """
    server, _ = start_http_server(port, addr=host, registry=REGISTRY)
    return int(server.server_port)
