"""From scores to alert records: thresholds, alert rules, budgets, groups, silences and silent sources.

`StreamAlerting` is what the partitions of a stream share, `PartitionAlerting` the share of one. Where
nothing of it is configured a chunk goes the short way: `judge` and the alert machine, nothing else.

State: open alerts are rows of the detect agent's sensors. What follows single sensors (adaptive thresholds,
when they were heard) is a `SensorState` of its own, which exists only once it is used; budgets, groups and
outages are a blob. Both are written before the rows of the detect agent, so that after a crash they have
seen all that those have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from agents.alert_records import AlertRecords
from anomaly.alerts import AlertEvent, AlertMachine
from anomaly.budgets import BudgetNotice, Budgets
from anomaly.groups import AlertGroups, group_id
from anomaly.notice import Notice
from anomaly.thresholds import Resolver, ThresholdTable
from anomaly.verdict import Limits, Verdict, judge, judge_each
from streams import metrics
from streams.control import ControlState, ThresholdRule
from streams.records import Alert
from streams.state import BlobState, SensorState

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from agents.silence import SilenceWatch
    from anomaly.detector import Detector, FloatArray, RowArray
    from anomaly.silence import Scope
    from streams.config import StreamConfig

#: Changes between two offsets that a blob's number tells apart.
CHANGES = 1 << 10


class Taken(NamedTuple):
    """Readings of a chunk that are new, as columns; see `ReadingBatch`, whose `index` is `inner` here."""

    rows: RowArray
    values: FloatArray
    ts: FloatArray
    scores: FloatArray
    published: FloatArray
    offsets: NDArray[np.int64]
    inner: NDArray[np.int32] | None

    def place(self, i: int) -> tuple[int, int]:
        """Return the place of a reading in the log."""
        return int(self.offsets[i]), -1 if self.inner is None else int(self.inner[i])


class StreamAlerting:
    """What the partitions of one stream share.

    Args:
        stream: the stream.
        detector: its detector.
        control: what is set by the control topic.
        partitions: of the stream's topic: each has its part of the budgets.
    """

    def __init__(
        self, stream: StreamConfig, detector: Detector, control: ControlState, partitions: int = 1
    ) -> None:
        self.stream, self.detector, self.control = stream, detector, control
        self.partitions = max(partitions, 1)
        #: A word that changes when kept state no longer fits: also by what is in a detector's files, which
        #: the configuration doesn't say.
        self.fingerprint = "/".join(
            filter(None, (stream.state_fingerprint(), getattr(detector, "content", "")))
        )
        self.machine = AlertMachine(stream.alerts)
        self.pattern = re.compile(stream.sensor_pattern) if stream.sensor_pattern else None
        self.units = [spec.unit for spec in stream.fields.values()]
        self._configured = {
            f"{stream.name}[{i}]": ThresholdRule(**msgspec.structs.asdict(rule))
            for i, rule in enumerate(stream.thresholds)
        }
        self._resolver: Resolver | None = None
        self._version = -1

    def resolver(self) -> Resolver | None:
        """Return the rules that hold now; None: there are none."""
        if self._version != self.control.version:
            self._version = self.control.version
            decades = hasattr(getattr(self.detector, "config", None), "once_in")
            made = Resolver(
                {**self._configured, **self.control.thresholds},
                self.stream.name,
                self.stream.field_names,
                self.detector.thresholds,
                decades,
                self.pattern,
            )
            self._resolver = made if made.rules else None
        return self._resolver

    def site(self, sensor: str) -> str:
        """Return the site of a sensor."""
        found = self.pattern.search(sensor) if self.pattern is not None else None
        return (found.groupdict().get("site") if found is not None else None) or self.stream.name


class _Shared(msgspec.Struct):
    """The blob: all that is of no single sensor."""

    applied: int
    budgets: bytes
    groups: bytes
    outages: bytes


class PartitionAlerting:
    """The alerting of one input partition.

    Args:
        shared: of the stream.
        sensors: the detect agent's sensors.
        changelog: the contents of the changelog.
    """

    def __init__(
        self, shared: StreamAlerting, sensors: SensorState, changelog: Mapping[bytes, bytes]
    ) -> None:
        self.shared = shared
        self._records = AlertRecords(shared)
        self._sensors = sensors
        self._changelog = changelog
        self._table: ThresholdTable | None = None
        self._watched: SensorState | None = None
        self._watch_rows: RowArray = np.empty(0, np.int32)
        self._budgets = Budgets(1 / shared.partitions)
        self._groups = AlertGroups(shared.stream.alerts.group_min)
        self._blob = BlobState("alerting", "1")
        self._applied = self._replayed = -1
        self._stamp = 0
        self._newest_ts = -np.inf
        self._governor: _Governor | None = None
        saved = self._blob.load(changelog)
        outages = b""
        if saved is not None:
            state = msgspec.msgpack.decode(saved[0], type=_Shared)
            self._stamp, self._applied = saved[1], state.applied
            self._replayed = state.applied
            self._budgets.restore(state.budgets, state.applied)
            self._groups.restore(state.groups)
            outages = state.outages
        self.silence: SilenceWatch | None = None
        if shared.stream.alerts.silent_after is not None:
            from agents.silence import SilenceWatch

            self.silence = SilenceWatch(shared, self.watched, outages)

    # -- state

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        """Take what has changed since the last checkpoint; see `streams.checkpoint.Participant`."""
        changes = []
        silence = self.silence
        if self._budgets.changed or self._groups.changed or (silence is not None and silence.changed):
            outages = silence.dump() if silence is not None else b""
            state = _Shared(self._applied, self._budgets.dump(), self._groups.dump(), outages)
            # a blob may change without a reading, and the newer of two is told by its number
            self._stamp = max(self._stamp + 1, self._applied * CHANGES)
            changes = self._blob.dump(msgspec.msgpack.encode(state), self._stamp)
        if self._watched is not None:
            changes += self._watched.snapshot()
        return changes

    def watched(self) -> SensorState:
        """Return the state of what follows single sensors, made and restored when it is first asked for."""
        if self._watched is None:
            from anomaly import silence
            from anomaly.adaptive import follower_dtype

            dtype = follower_dtype(len(self.shared.detector.thresholds))
            parts: dict[str, Callable[[int], NDArray[np.void]]] = {
                "follow": lambda n: np.zeros(n, dtype),
                "heard": silence.init,
            }
            fingerprint = f"{self.shared.fingerprint}/1"
            self._watched = SensorState("watch", fingerprint, parts)
            self._watched.restore(self._changelog)
        return self._watched

    def _rows_there(self, rows: RowArray) -> RowArray:
        """Return the rows of `watched` that belong to rows of the detect agent."""
        known = self._watch_rows
        if len(known) < len(self._sensors.ids):
            more = np.full(len(self._sensors.ids) - len(known), -1, np.int32)
            known = self._watch_rows = np.concatenate((known, more))
        there = known[rows]
        if there.min(initial=0) < 0:
            new = np.unique(rows[there < 0])
            known[new] = self.watched().locate([self._sensors.ids[row] for row in new.tolist()])
            there = known[rows]
        return there

    # -- a chunk

    def take(self, taken: Taken, last_offset: int, now: float) -> tuple[Verdict, list[AlertEvent]]:
        """Judge readings and move the alerts on.

        Args:
            taken: the readings.
            last_offset: of their chunk.
            now: wall clock, seconds since 1970.
        """
        shared, self._governor = self.shared, None
        resolver = shared.resolver()
        self._applied = max(self._applied, last_offset)
        if resolver is None and self.silence is None:
            verdict = judge(taken.scores, shared.detector.thresholds)
        else:
            verdict = self._judge(resolver, taken, last_offset, now)
        events = shared.machine.update(
            self._sensors.rows["alerts"], taken.rows, taken.values, taken.ts, verdict, self._governor
        )
        return verdict, events

    def _judge(self, resolver: Resolver | None, taken: Taken, last_offset: int, now: float) -> Verdict:
        table = self._table
        if resolver is None:
            table = self._table = None
        elif table is None or table.resolver is not resolver:
            table = self._table = ThresholdTable(resolver)
        if table is not None:
            table.learn(self._sensors.ids, taken.rows)
        adapts = table is not None and table.adapts
        there, fresh = taken.rows, None
        if adapts or self.silence is not None:
            there = self._rows_there(taken.rows)
            fresh = self.watched().fresh(there, taken.offsets)
        if self.silence is not None:
            self.silence.hear(there, taken.ts, taken.published, fresh, now)
        if table is None:
            verdict = judge(taken.scores, self.shared.detector.thresholds)
        else:
            thresholds = table.scores[taken.rows]
            if adapts:
                thresholds = self._follow(table, there, fresh, taken, thresholds)
            rows = taken.rows
            limits = Limits(table.low[rows], table.high[rows], table.span[rows]) if table.limited else None
            verdict = judge_each(taken.scores, thresholds, taken.values, limits)
            if table.governed:
                self._newest_ts = max(self._newest_ts, float(taken.ts.max()))
                severity = self.shared.stream.alerts.severity
                self._governor = _Governor(table, self._budgets, taken, severity)
        if adapts or self.silence is not None:
            self.watched().touch(there, last_offset)
        return verdict

    def _follow(
        self,
        table: ThresholdTable,
        there: RowArray,
        fresh: NDArray[np.bool_] | None,
        taken: Taken,
        base: FloatArray,
    ) -> FloatArray:
        from anomaly.adaptive import follow

        state, once_in = self.watched().rows["follow"], table.adaptive[taken.rows]
        if fresh is None:
            return follow(state, there, taken.scores, base, once_in)
        # a crash in the middle of a large checkpoint: these have taught their thresholds already
        scores = np.where(fresh[:, None], taken.scores, np.nan)
        return follow(state, there, scores, base, once_in)

    def records(
        self,
        events: list[AlertEvent],
        notices: list[Notice],
        taken: Taken,
        explain: Callable[[int, int], str],
    ) -> list[Alert]:
        """Return the alert records that a chunk gives rise to, in the order of its readings.

        Args:
            events: what `take` returned.
            notices: what failure prediction and drift said.
            taken: the readings.
            explain: the detector's words.
        """
        if not (events or notices or self._governor or self.silence):
            return []
        found: list[tuple[int, Alert]] = []
        stream, window_s = self.shared.stream, self.shared.stream.alerts.group_window_s
        for event in events:
            sensor = self._sensors.ids[event.row]
            group = None
            if window_s:
                site = self.shared.site(sensor)
                group = group_id(stream.name, site, event.started_at, window_s)
            suppressed = 0
            if self._governor is not None and event.state == "firing":
                suppressed = self._governor.suppressed.get(event.index, 0)
            found.append((event.index, self._records.of_event(event, sensor, group, explain, suppressed)))
            if group is not None and int(taken.offsets[event.index]) > self._replayed:
                told = self._groups.take(
                    group,
                    site,
                    sensor,
                    firing=event.state == "firing",
                    severity=event.severity,
                    started_at=event.started_at,
                    ts=event.ts,
                )
                if told is not None:
                    found.append((event.index, self._records.of_group(told)))
        if self._governor is not None:
            found += [(index, self._records.of_budget(notice)) for index, notice in self._governor.notices]
            for name, count in self._budgets.take_held().items():
                metrics.ALERTS_SUPPRESSED.labels(stream.name, name).inc(count)
        if self.silence is not None:
            found += [(index, self._records.mark(alert)) for index, alert in self.silence.take_returns()]
        for notice in notices:
            found.append((notice.index, self._records.of_notice(notice, self._sensors.ids[notice.row])))
        found.sort(key=lambda item: item[0])
        return [alert for _, alert in found]

    # -- between chunks

    @property
    def has_notices(self) -> bool:
        """Whether a notice of a budget is open."""
        return self._budgets.has_notices

    def fallen_silent(self, now: float, blamed: Mapping[str, Scope]) -> list[Alert]:
        """Return the alerts of sources that are newly missing.

        Args:
            now: wall clock, seconds since 1970.
            blamed: by site, who is to blame; see `anomaly.silence.blame`.
        """
        if self.silence is None:
            return []
        return [*map(self._records.mark, self.silence.silent(self.silence.clock(now), blamed))]

    def relaxed(self) -> list[Alert]:
        """Return the notices of budgets that are free again by the newest reading."""
        self._budgets.relax(self._newest_ts)
        return [self._records.of_budget(notice) for notice in self._budgets.take_notices()]


class _Governor:
    """Answers the alert machine for single sensors of one chunk; see `anomaly.alerts.Governor`."""

    def __init__(self, table: ThresholdTable, budgets: Budgets, taken: Taken, severity: str) -> None:
        self._table, self._budgets, self._taken, self._severity = table, budgets, taken, severity
        #: What is told of budgets, by reading; and what the alerts that open say was held back.
        self.notices: list[tuple[int, BudgetNotice]] = []
        self.suppressed: dict[int, int] = {}

    def severity(self, row: int) -> str:
        return self._table.severities[row] or self._severity

    def allows(self, row: int, ratio: float, ts: float, index: int, *, held: bool) -> float | None:
        budget = self._table.budgets[row]
        if budget is None:
            return 1.0
        raised = self._budgets.allows(budget, ratio, ts, self._taken.place(index), counted=held)
        self.notices += [(index, notice) for notice in self._budgets.take_notices()]
        if raised is not None:
            self.suppressed[index] = self._budgets.take_suppressed(budget.group)
        return raised
