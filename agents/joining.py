"""Sensors of one group scored together: part of the detect agent, where a stream has a `join`.

`StreamJoin` is what the partitions of a stream share, `PartitionJoin` the share of one, with a state of its
own: a row for each group. Readings come to it after the transforms; `anomaly.join` makes rows of them, the
join's detector scores these, and what is strange becomes alerts of the scope `group`. There are no
predictions of groups: those are one for each reading.

**Replays.** The groups' shards are written before those of their sensors, so after a crash a group has seen
every reading that its sensors have, and maybe more. So what a group has to see again is new to its sensor
too, and comes here with the values that the transforms make of it; what is new to the sensor only is left
out here, by the last offset of the group's own shard; a shard that went back would be ignored at the next
recovery.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from agents.alert_records import AlertRecords
from anomaly.alerts import AlertMachine
from anomaly.join import Join
from anomaly.registry import build_detector
from anomaly.verdict import Verdict, judge
from streams import metrics
from streams.control import matches
from streams.state import SensorState

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from agents.alerting import StreamAlerting, Taken
    from anomaly.alerts import AlertEvent
    from anomaly.detector import Detector, Explain, FloatArray, RowArray
    from streams.config import JoinConfig, StreamConfig
    from streams.records import Alert

#: Instead of a group's row: the sensor is in no group; it was not looked at yet.
NO_GROUP, UNKNOWN = -1, -2


@dataclass(slots=True)
class Joint:
    """What the readings of one batch said of groups: m rows, the group of each, and their alerts.

    Attributes:
        groups: names, one a row.
        at: intp [m], the reading that made each row, among those taken.
        values: float64 [m, members].
        ts: float64 [m], event time in seconds since 1970.
        verdict: of the rows; None without any.
        alerts: records, in the order of the readings.
    """

    groups: list[str] = field(default_factory=list)
    at: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    values: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    ts: FloatArray = field(default_factory=lambda: np.empty(0))
    verdict: Verdict | None = None
    alerts: list[Alert] = field(default_factory=list)


class StreamJoin:
    """What the partitions of one stream share.

    Args:
        stream: the stream.
        config: its join.
        alerting: of the stream; its rules and budgets are about sensors and don't hold here, its silences do.
    """

    def __init__(self, stream: StreamConfig, config: JoinConfig, alerting: StreamAlerting) -> None:
        self.stream, self.config = stream, config
        self.names = tuple(config.members)
        self.patterns = [member.sensor for member in config.members.values()]
        fields = [member.field or stream.field_names[0] for member in config.members.values()]
        #: intp [members], the stream's field that each member is.
        self.columns = np.array([stream.field_names.index(name) for name in fields], np.intp)
        self.units = [stream.fields[name].unit for name in fields]
        self.detector: Detector = build_detector(config.detector, self.names)
        self.join = Join(len(self.names), config.max_age_s)
        self.machine = AlertMachine(stream.alerts)
        self.records = AlertRecords(alerting)
        self._pattern = re.compile(stream.sensor_pattern or "")
        # compiled now, not when readings wait
        nothing, row = np.full((1, len(self.names)), np.nan), np.zeros(1, np.int32)
        self.join.update(self.join.init(1), row, np.zeros(1, np.intp), nothing[0, :1], np.zeros(1))
        self.detector.examine(self.detector.init(1), row, nothing, np.zeros(1))

    def group(self, sensor: str) -> str | None:
        """Return the group that a sensor is in; None: in none."""
        found = self._pattern.search(sensor)
        return (found.groupdict().get(self.config.by) if found is not None else None) or None

    def share(self, sensors: SensorState, changelog: Mapping[bytes, bytes]) -> PartitionJoin:
        """Return the share of one partition, restored from its changelog."""
        content = getattr(self.detector, "content", "")
        fingerprint = "/".join(filter(None, (self.stream.join_fingerprint(), content)))
        parts = {"join": self.join.init, "detector": self.detector.init, "alerts": self.machine.init}
        state = SensorState("join", fingerprint, parts)
        state.restore(changelog)
        return PartitionJoin(self, sensors, state)


class PartitionJoin:
    """The groups of one input partition.

    Args:
        shared: of the stream.
        sensors: the detect agent's sensors.
        state: a row for each group.
    """

    def __init__(self, shared: StreamJoin, sensors: SensorState, state: SensorState) -> None:
        self.shared, self.state = shared, state
        self._sensors = sensors
        # by sensor's row: the group's row, and which members it is
        self._group: RowArray = np.empty(0, np.int32)
        self._is_member: NDArray[np.bool_] = np.empty((0, len(shared.names)), np.bool_)

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        """Take what has changed since the last checkpoint; to be written before the sensors' state."""
        return self.state.snapshot()

    def take(self, taken: Taken, last_offset: int) -> Joint:
        """Score the groups that readings belong to.

        Args:
            taken: readings that are new to their sensors.
            last_offset: of their chunk.
        """
        shared, state = self.shared, self.state
        self._learn(taken.rows)
        at, members = np.nonzero(self._is_member[taken.rows])
        if not len(at):
            return Joint()
        groups = self._group[taken.rows[at]]
        fresh = state.fresh(groups, taken.offsets[at])
        if fresh is not None:
            at, members, groups = at[fresh], members[fresh], groups[fresh]
            if not len(at):
                return Joint()
        values = taken.values[at, shared.columns[members]]
        joined = shared.join.update(state.rows["join"], groups, members, values, taken.ts[at])
        state.touch(groups, last_offset)
        if joined.incomplete:
            metrics.JOIN_INCOMPLETE.labels(shared.stream.name).inc(joined.incomplete)
        if not len(joined.rows):
            return Joint()
        metrics.JOINED.labels(shared.stream.name).inc(len(joined.rows))
        columns = joined.rows, joined.values, joined.ts
        scores, explain = shared.detector.examine(state.rows["detector"], *columns)
        verdict = judge(scores, shared.detector.thresholds)
        events = shared.machine.update(state.rows["alerts"], *columns, verdict)
        names = [state.ids[row] for row in joined.rows.tolist()]
        alerts = [self._record(event, explain) for event in events]
        return Joint(names, at[joined.at], joined.values, joined.ts, verdict, alerts)

    def _record(self, event: AlertEvent, explain: Explain) -> Alert:
        shared = self.shared
        joint = len(shared.detector.thresholds) == 1
        why = explain(event.index, 0 if joint else event.field) if event.state == "firing" else ""
        member = None if joint else (shared.names[event.field], shared.units[event.field])
        return shared.records.of_join(event, self.state.ids[event.row], member, self._members(event.row), why)

    def _members(self, group: int) -> list[str]:
        """Return the sensors of a group that are known, in the order of the members."""
        ids = self._sensors.ids
        self._learn(np.flatnonzero(np.array(ids, np.object_) != "").astype(np.int32))
        rows = np.flatnonzero(self._group == group).tolist()
        return [ids[row] for row in sorted(rows, key=lambda row: (self._is_member[row].argmax(), ids[row]))]

    def _learn(self, rows: RowArray) -> None:
        """Find the groups of sensors that were not looked at yet."""
        more = len(self._sensors.ids) - len(self._group)
        if more > 0:
            self._group = np.concatenate((self._group, np.full(more, UNKNOWN, np.int32)))
            none = np.zeros((more, len(self.shared.names)), np.bool_)
            self._is_member = np.concatenate((self._is_member, none))
        new = self._group[rows] == UNKNOWN
        if not new.any():
            return
        for row in np.unique(rows[new]).tolist():
            sensor = self._sensors.ids[row]
            group = self.shared.group(sensor)
            members = [group is not None and matches(pattern, sensor) for pattern in self.shared.patterns]
            self._group[row] = NO_GROUP
            if group is not None and any(members):
                self._group[row] = self.state.locate([group])[0]
                self._is_member[row] = members
