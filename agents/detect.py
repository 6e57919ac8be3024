"""The detect agent: every reading scored as it arrives, predictions and alerts out.

`StreamDetector` holds what all partitions of a stream share; `DetectPartition` is the share of one input
partition, with the sensors' state, and is a participant of its checkpoints. `process` is plain arrays in and
messages out; only `make_detect_agent` knows Faust.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agents.alerting import PartitionAlerting, StreamAlerting, Taken
from agents.publishers import Output, PublisherBook, Seen
from anomaly.detector import Detector
from anomaly.notice import Notice
from anomaly.registry import build_detector
from anomaly.verdict import Verdict
from streams import metrics
from streams.app import StreamApp
from streams.checkpoint import InputPartition
from streams.codecs import PredictionEncoder, encode_alert
from streams.config import StreamConfig, TopicsConfig
from streams.control import ControlState
from streams.records import ARROW_HEADERS, Alert, Chunk, ReadingBatch, Rejected, is_arrow
from streams.state import SensorState
from streams.transforms import Pipeline

if TYPE_CHECKING:
    from agents.joining import Joint, PartitionJoin, StreamJoin
    from anomaly.drift import DriftWatch
    from anomaly.prognosis import Prognosis


@dataclass(slots=True)
class Outcome:
    """What the readings of one batch give rise to."""

    #: Seconds from Kafka's timestamp of each scored reading, float64 [scored]; replayed ones are not scored.
    latency_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    predictions: Output = field(default_factory=Output)
    alerts: Output = field(default_factory=Output)
    #: Of the scored readings, for who wants numbers instead of messages (`polarstream backtest`).
    verdict: Verdict | None = None
    #: Of the groups' rows, likewise.
    joint: Joint | None = None


class StreamDetector:
    """What the partitions of one stream share: codec, transforms, detector, alert rules.

    Args:
        stream: the stream.
        control: what is set by the control topic; None: nothing.
        partitions: of the stream's topic, which share the budgets of alerts.
    """

    def __init__(
        self, stream: StreamConfig, control: ControlState | None = None, partitions: int = 1
    ) -> None:
        self.stream = stream
        thresholds = {name: spec.threshold for name, spec in stream.fields.items()}
        self.detector: Detector = build_detector(stream.detector, stream.field_names, thresholds)
        # a compiled detector takes seconds to compile on a new machine: now, not when readings wait
        nothing = np.full((1, len(stream.field_names)), np.nan)
        self.detector.examine(self.detector.init(1), np.zeros(1, np.int32), nothing, np.zeros(1))
        transforms = Pipeline(stream.fields)
        self.transforms: Pipeline | None = (
            transforms if transforms.dtype.itemsize or transforms.active else None
        )
        self.alerting = StreamAlerting(stream, self.detector, control or ControlState(), partitions)
        self.alerts = self.alerting.machine
        self.encoder = PredictionEncoder(stream, self.detector.name, self.detector.version)
        units = [spec.unit for spec in stream.fields.values()]
        self.prognosis: Prognosis | None = None
        if stream.prognosis.limits:
            from anomaly.prognosis import Prognosis  # needs numba, 65 MB

            self.prognosis = Prognosis(stream.prognosis, stream.field_names, units)

        self.drift: DriftWatch | None = None
        if stream.drift.enabled:
            from anomaly.drift import DriftWatch

            self.drift = DriftWatch(stream.drift, stream.field_names, units)

        self.join: StreamJoin | None = None
        if stream.join is not None:
            from agents.joining import StreamJoin

            self.join = StreamJoin(stream, stream.join, self.alerting)

    def new_state(self) -> SensorState:
        """Make the empty state of a partition."""
        parts: dict[str, Callable[[int], NDArray[np.void]]] = {
            "detector": self.detector.init,
            "alerts": self.alerts.init,
        }
        if self.transforms is not None:
            parts["transforms"] = self.transforms.init
        if self.prognosis is not None:
            parts["prognosis"] = self.prognosis.init
        if self.drift is not None:
            parts["drift"] = self.drift.init
        return SensorState("detect", self.alerting.fingerprint, parts)


class DetectPartition:
    """The detect agent's state for one input partition."""

    def __init__(self, shared: StreamDetector, changelog: Any) -> None:
        self.shared = shared
        self.state = shared.new_state()
        self.state.restore(changelog)
        self.alerting = PartitionAlerting(shared.alerting, self.state, changelog)
        self.join: PartitionJoin | None = None
        if shared.join is not None:
            self.join = shared.join.share(self.state, changelog)
        self.publishers = PublisherBook(changelog)
        # last offset of what this worker has processed; a seek back makes it read that again
        self._applied = -1

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        """Take what has changed since the last checkpoint; see `streams.checkpoint.Participant`."""
        # groups before their sensors: see `PartitionJoin`
        groups = self.join.snapshot() if self.join is not None else []
        return self.alerting.snapshot() + groups + self.state.snapshot() + self.publishers.snapshot()

    def observe(self, chunk: Chunk, rejected: list[Rejected]) -> Seen:
        """Take in what is not scored: see `PublisherBook.observe`."""
        return self.publishers.observe(chunk, rejected, self._applied)

    def process(self, batch: ReadingBatch, now: float) -> Outcome:
        """Score a batch, move the state on and write the outputs.

        Args:
            batch: readings of this partition, in log order.
            now: wall clock, seconds since the epoch.
        """
        outcome = Outcome()
        applied, self._applied = self._applied, max(self._applied, batch.last_offset)
        if not len(batch):
            return outcome
        shared, state = self.shared, self.state
        if batch.ids is not None:
            distinct, codes = batch.ids
            rows = state.locate(distinct)[codes]
        else:
            rows = state.locate(batch.sensor_ids)
        values, ts = batch.values, batch.ts
        fresh = state.fresh(rows, batch.offsets)
        if batch.first_offset <= applied:
            fresh = (batch.offsets > applied) if fresh is None else fresh & (batch.offsets > applied)
        picked: NDArray[np.intp] | None = None
        if fresh is not None:
            picked = np.flatnonzero(fresh)
            metrics.REPLAYED.labels(batch.stream).inc(len(fresh) - len(picked))
            if not len(picked):
                return outcome
            rows, values, ts = rows[picked], values[picked], ts[picked]
        if shared.transforms is not None:
            values = shared.transforms.apply(state.rows["transforms"], rows, values, ts)
        notices: list[Notice] = []
        if shared.drift is None:
            scores, explain = shared.detector.examine(state.rows["detector"], rows, values, ts)
        else:
            from anomaly.drift import examine_in_parts

            notices = shared.drift.update(state.rows["drift"], rows, values, ts)
            scores, explain = examine_in_parts(
                shared.detector, state.rows["detector"], rows, values, ts, notices
            )
        published = batch.published if picked is None else batch.published[picked]
        index = batch.index if picked is None or batch.index is None else batch.index[picked]
        offsets = batch.offsets if picked is None else batch.offsets[picked]
        taken = Taken(rows, values, ts, scores, published, offsets, index)
        verdict, events = self.alerting.take(taken, batch.last_offset, now)
        if shared.prognosis is not None:
            notices += shared.prognosis.update(state.rows["prognosis"], rows, values, ts, verdict)
        state.touch(rows, batch.last_offset)

        outcome.latency_s, outcome.verdict = now - published, verdict
        keys = state.keys
        judged = (verdict.score, verdict.field, verdict.is_anomaly)
        if batch.index is None:
            values_out = shared.encoder.encode(batch, picked, *judged, now)
            outcome.predictions = Output([keys[row] for row in rows.tolist()], values_out)
        else:
            out_keys, messages = shared.encoder.encode_messages(batch, picked, *judged, now)
            headers = [ARROW_HEADERS if is_arrow(message, ()) else () for message in messages]
            outcome.predictions = Output(out_keys, messages, headers)
        alerts = self.alerting.records(events, notices, taken, explain)
        if self.join is not None:
            outcome.joint = self.join.take(taken, batch.last_offset)
            alerts += outcome.joint.alerts
        if alerts:
            outcome.alerts = alert_output(batch.stream, alerts)
        return outcome


def alert_output(stream: str, alerts: Sequence[Alert]) -> Output:
    """Return the messages of alert records, and count them."""
    for alert in alerts:
        metrics.ALERTS.labels(stream, alert.state).inc()
    return Output([alert.source.encode() for alert in alerts], [*map(encode_alert, alerts)])


def make_detect_agent(
    app: StreamApp,
    topic: Any,
    config: StreamConfig,
    topics: TopicsConfig,
    control: ControlState | None = None,
) -> Any:
    """Declare the agent that scores a stream.

    Args:
        app: the application.
        topic: the stream's `streams.topics.ReadingTopic`.
        config: the stream.
        topics: names of the output topics.
        control: what is set by the control topic; None: nothing.
    """
    shared = StreamDetector(config, control, app.input_partitions.get(config.topic, config.partitions))
    name = config.name
    role = f"detect-{name}"
    counters = metrics.of_stream(name)

    def opened(partition: InputPartition) -> DetectPartition:
        share = DetectPartition(shared, partition.table.contents(partition.tp.partition))
        if share.state.dropped or (share.join is not None and share.join.state.dropped):
            app.log.warning(
                "stream %r: its fields, transforms, detector or join have changed, so what partition %s "
                "kept of them is dropped, and its sensors or groups warm up again",
                name,
                partition.tp.partition,
            )
        partition.participants[role] = share
        return share

    watch_silence(app, config, topics, role, opened)

    @app.agent(topic, name=role, concurrency=app.actors(config))  # type: ignore[untyped-decorator]
    async def detect(batches: Any) -> None:
        async for event in batches.events():
            batch, chunk = event.value, event.message.value
            partition = app.input_partition(batch)
            async with partition.turn(role, batch):
                share: Any = partition.participants.get(role) or opened(partition)
                started, now = time.perf_counter(), time.time()
                seen = share.observe(chunk, batch.rejected)
                outcome = share.process(batch, now)
                scored = time.perf_counter()
                for target, output in (
                    (topics.predictions, outcome.predictions),
                    (topics.alerts, outcome.alerts),
                    (topics.dead_letter, seen.dead_letters),
                ):
                    await partition.emitter.emit(target, batch.partition, *output)
                counters.score_s.inc(scored - started)
                counters.emit_s.inc(time.perf_counter() - scored)
            counters.readings.inc(len(outcome.latency_s))
            counters.predictions.inc(len(outcome.predictions.values))
            if seen.lost or seen.duplicated:
                counters.lost.inc(seen.lost)
                counters.duplicated.inc(seen.duplicated)
            for rejected in seen.rejected:
                metrics.DEAD_LETTERS.labels(name, rejected.reason).inc()
            if len(outcome.latency_s):
                metrics.LATENCY.observe(name, outcome.latency_s)

    return detect


def watch_silence(
    app: StreamApp,
    config: StreamConfig,
    topics: TopicsConfig,
    role: str,
    opened: Callable[[InputPartition], DetectPartition],
) -> None:
    """Let `look_between_chunks` look at the partitions of a stream, for what no reading brings about.

    Args:
        app: the application.
        config: the stream.
        topics: names of the output topics.
        role: of its detect agent.
        opened: makes the agent's share of a partition.
    """

    async def tell(partition: InputPartition, alerts: list[Alert]) -> None:
        """Send alerts that no reading brought about; call it under the partition's lock."""
        await partition.emitter.emit(
            topics.alerts, partition.tp.partition, *alert_output(config.name, alerts)
        )

    async def look(now: float) -> None:
        shares: list[tuple[InputPartition, DetectPartition]] = []
        for tp, partition in list(app.checkpointer.partitions.items()):
            if tp.topic == config.topic and not partition.broken:
                found: Any = partition.participants.get(role)
                if found is None and config.alerts.silent_after is not None and app.settled(partition):
                    # silent since before this worker took it over
                    async with partition.lock:
                        found = partition.participants.get(role) or opened(partition)
                if found is not None:
                    shares.append((partition, found))
        changed: set[InputPartition] = set()
        for partition, share in shares:
            if share.alerting.has_notices:
                async with partition.lock:
                    alerts = share.alerting.relaxed()
                    if alerts:
                        await tell(partition, alerts)
                        changed.add(partition)
        quiet: Counter[str] = Counter()
        speaking: Counter[str] = Counter()
        missing = 0
        for _, share in shares:
            if share.alerting.silence is not None:
                count, still, loud = share.alerting.silence.counts(share.alerting.silence.clock(now))
                missing, quiet, speaking = missing + count, quiet + still, speaking + loud
        if missing:
            from anomaly.silence import blame  # compiled: needs numba

            answers = bool(speaking) or await app.broker_answers()
            blamed = blame(quiet, speaking, answers)
            for partition, share in shares:
                async with partition.lock:
                    alerts = share.alerting.fallen_silent(now, blamed)
                    if alerts:
                        await tell(partition, alerts)
                        changed.add(partition)
        for partition in changed:
            await app.commit_between(partition)

    app.between_chunks.append(look)


def export_gauges(app: StreamApp) -> None:
    """Export how many sensors have state on this worker, and how many alerts are open, by stream."""
    rows: Counter[str] = Counter()
    alerts: Counter[str] = Counter()
    for partition in app.checkpointer.partitions.values():
        for share in partition.participants.values():
            if isinstance(share, DetectPartition):
                stream = share.shared.stream.name
                rows[stream] += len(share.state)
                alerts[stream] += share.shared.alerts.open_rows(share.state.rows["alerts"])
                if share.join is not None:
                    alerts[stream] += share.shared.alerts.open_rows(share.join.state.rows["alerts"])
    for stream in {*rows, *alerts}:
        metrics.STATE_ROWS.labels(stream).set(rows[stream])
        metrics.ALERTS_OPEN.labels(stream).set(alerts[stream])
