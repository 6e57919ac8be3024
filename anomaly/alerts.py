"""When alerts open, worsen and resolve.

One alert a sensor at a time, whichever of its fields started it. A reading is *anomalous* when its worst
score is at or above that field's threshold, *quiet* when it is below `resolve_below` of it, and in between
otherwise:

    calm     --  open_after anomalous readings in a row   -->  open      event "firing"
    open     --  a score of twice the threshold           -->  open      event "firing", now critical
    open     --  resolve_after quiet readings in a row    -->  calm      event "resolved"

`min_duration_s` makes an alert wait: the anomalous readings in a row must also last so long. A `Governor`
may give sensors severities of their own and hold alerts back (budgets): such a sensor stays pending until
it is let through or has a reading that is not anomalous.

A reading without any score changes nothing. The state is columns that the caller keeps, as with detectors,
and any cut of the readings gives the same events.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from streams.occurrence import Costs, IntArray, Rounds

if TYPE_CHECKING:
    from anomaly.detector import FloatArray, RowArray, StateArray
    from anomaly.verdict import Verdict
    from streams.config import AlertConfig

CALM, PENDING, OPEN = 0, 1, 2
#: Pending, and counted as held back.
HELD = 3
#: Up to this many readings of sensors that are not calm are taken one by one.
FEW = 32
#: Microseconds: a round, a tail, a reading of a tail.
COSTS = Costs(per_round=130, per_tail=6, per_tail_reading=0.7)
#: The score over its threshold from which an alert is critical.
CRITICAL_RATIO = 2.0
CRITICAL = "critical"


@dataclass(slots=True)
class AlertEvent:
    """An alert that opened, worsened or resolved.

    Attributes:
        state: "firing" or "resolved".
        row: the sensor's row in the state.
        index: the reading of the chunk that did it.
        field: the field that was worst in this alert so far.
        value: that field's value in this reading; NaN where it has none.
        score: its score in this reading; NaN likewise.
        threshold: of that field.
        severity: the configured one, or "critical".
        started_at: event time of the first anomalous reading of the alert, seconds since 1970.
        ts: event time of this reading.
        count: anomalous readings in this alert so far.
        serial: how many alerts this sensor had before; tells apart alerts that start at one time.
        limit: the limit in the field's unit that the value is beyond, None if it is within.
    """

    state: Literal["firing", "resolved"]
    row: int
    index: int
    field: int
    value: float
    score: float
    threshold: float
    severity: str
    started_at: float
    ts: float
    count: int
    serial: int
    limit: float | None = None

    def alert_id(self, stream: str, sensor_id: str, rule: str) -> str:
        """Return the id that all events of this alert carry, also when the stream is replayed."""
        return alert_id(stream, sensor_id, rule, self.started_at, self.serial)


class Governor(Protocol):
    """Decides for single sensors what the stream's settings decide for all."""

    def severity(self, row: int) -> str:
        """Return the severity with which alerts of a sensor open."""
        ...

    def allows(self, row: int, ratio: float, ts: float, index: int, *, held: bool) -> float | None:
        """Ask whether an alert may open now.

        Args:
            row: the sensor.
            ratio: of this reading, at least 1.
            ts: its event time.
            index: the reading.
            held: whether this alert was held back before.

        Returns:
            By how much the threshold is raised (1: not at all), or None: it is held back.
        """
        ...


class _Chunk(NamedTuple):
    rows: RowArray
    values: FloatArray
    ts: FloatArray
    verdict: Verdict


class AlertMachine:
    """Opens and resolves the alerts of one stream.

    Args:
        config: when to open and to resolve.
    """

    #: The state of one sensor: 32 bytes.
    dtype: np.dtype[Any] = np.dtype(
        [
            ("phase", "u1"),  # CALM, PENDING (a streak of anomalous readings, too short yet) or OPEN
            ("critical", "u1"),
            ("field", "<i2"),
            ("streak", "<i4"),  # anomalous readings in a row (PENDING), quiet ones (OPEN)
            ("count", "<i4"),
            ("serial", "<i4"),
            ("started_at", "<f8"),
            ("worst", "<f8"),  # the largest score over its threshold
        ]
    )

    def __init__(self, config: AlertConfig) -> None:
        self.config = config

    def init(self, n: int) -> StateArray:
        """Return the state of n sensors that were never seen, [n]."""
        return np.zeros(n, self.dtype)

    def open_rows(self, state: StateArray) -> int:
        """Return how many alerts are open."""
        return int(np.count_nonzero(state["phase"] == OPEN))

    def update(
        self,
        state: StateArray,
        rows: RowArray,
        values: FloatArray,
        ts: FloatArray,
        verdict: Verdict,
        governor: Governor | None = None,
    ) -> list[AlertEvent]:
        """Take a chunk of judged readings.

        Args:
            state: structured [sensors] of `dtype`, changed in place.
            rows: int32 [n], the sensor of each reading, in log order.
            values: float64 [n, fields].
            ts: float64 [n], seconds since 1970.
            verdict: of these readings.
            governor: decides for single sensors. Readings of sensors that are not calm are then taken one by
                one, 0.7 µs each, in the order of the log.

        Returns:
            The events, in the order of the readings.
        """
        phase = state["phase"]
        active = phase[rows] != CALM
        strange = verdict.is_anomaly
        if not strange.any():
            if not active.any():
                return []
            picked = np.flatnonzero(active)
        else:
            # every reading of a sensor that is active, and from its first anomalous reading on of any other
            odd = np.flatnonzero(strange)
            first = np.full(len(state), len(rows))
            first[rows[odd[::-1]]] = odd[::-1]
            picked = np.flatnonzero(active | (np.arange(len(rows)) >= first[rows]))
        # a reading without a score changes nothing
        picked = picked[~np.isnan(verdict.ratio[picked])]
        if not len(picked):
            return []
        chunk = _Chunk(rows, values, ts, verdict)
        if governor is not None or len(picked) <= FEW:
            numbers, place = np.unique(rows[picked], return_inverse=True)
            sensors = state[numbers]
            events = self._one_by_one(sensors, place.tolist(), picked.tolist(), chunk, governor)
            state[numbers] = sensors
            return events
        rounds = Rounds(rows[picked], COSTS)
        order = picked.take(rounds.order)
        sensors = state[rounds.rows]
        events = self._rounds(sensors, rounds.widths, order, chunk)
        for rank, start, stop in rounds.tails:
            tail = order[start:stop].tolist()
            events += self._one_by_one(sensors, [rank] * len(tail), tail, chunk)
        state[rounds.rows] = sensors
        events.sort(key=lambda event: event.index)
        return events

    def _rounds(
        self, sensors: StateArray, widths: list[int], order: IntArray, chunk: _Chunk
    ) -> list[AlertEvent]:
        """Take one reading of each sensor at a time, as `_one_by_one` would."""
        config = self.config
        base_is_critical = config.severity == CRITICAL
        columns = {name: sensors[name].copy() for name in self.dtype.names or ()}
        np.copyto(columns["phase"], PENDING, where=columns["phase"] == HELD)
        ratios, fields, times = (x.take(order) for x in (chunk.verdict.ratio, chunk.verdict.field, chunk.ts))
        events: list[AlertEvent] = []
        start = 0
        for width in widths:
            part = slice(start, start + width)
            ratio = ratios[part]
            now = {name: column[:width] for name, column in columns.items()}
            phase, streak, critical = now["phase"], now["streak"], now["critical"]
            strange = ratio >= 1
            was_open = phase == OPEN
            begins = strange & (phase == CALM)
            np.copyto(now["started_at"], times[part], where=begins)
            np.copyto(now["worst"], -np.inf, where=begins)
            for name in ("count", "streak", "critical"):
                np.copyto(now[name], 0, where=begins)
            np.copyto(phase, PENDING, where=begins)
            now["count"] += strange
            worse = strange & (ratio > now["worst"])
            np.copyto(now["worst"], ratio, where=worse)
            np.copyto(now["field"], fields[part], where=worse, casting="same_kind")
            # anomalous in a row while pending, quiet in a row while open, else 0
            goes_on = np.where(was_open, ratio < config.resolve_below, strange)
            streak += 1
            np.copyto(streak, 0, where=~goes_on)
            pending = phase == PENDING
            np.copyto(phase, CALM, where=pending & ~strange)
            opened = pending & strange & (streak >= config.open_after)
            if config.min_duration_s:
                opened &= times[part] - now["started_at"] >= config.min_duration_s
            np.copyto(phase, OPEN, where=opened)
            np.copyto(streak, 0, where=opened)
            np.copyto(critical, now["worst"] >= CRITICAL_RATIO, where=opened, casting="unsafe")
            rises = was_open & (ratio >= CRITICAL_RATIO) & (critical == 0)
            np.copyto(critical, 1, where=rises)
            resolved = was_open & (streak >= config.resolve_after)
            told = opened | resolved if base_is_critical else opened | resolved | rises
            for at in np.flatnonzero(told).tolist():
                sensor = [column[at].item() for column in now.values()]
                state: Literal["firing", "resolved"] = "resolved" if resolved[at] else "firing"
                events.append(self._event(state, int(order[start + at]), sensor, chunk))
            np.copyto(phase, CALM, where=resolved)
            np.copyto(streak, 0, where=resolved)
            np.copyto(critical, 0, where=resolved)
            now["serial"] += resolved
            start += width
        for name, column in columns.items():
            sensors[name] = column
        return events

    def _one_by_one(
        self,
        sensors: StateArray,
        places: list[int],
        readings: list[int],
        chunk: _Chunk,
        governor: Governor | None = None,
    ) -> list[AlertEvent]:
        """Take readings in order; `places` says where in `sensors` the state of each one's sensor is."""
        config = self.config
        severity: str = config.severity
        held: dict[int, list[Any]] = {}
        events: list[AlertEvent] = []
        ratios = chunk.verdict.ratio[readings].tolist()
        fields = chunk.verdict.field[readings].tolist()
        times = chunk.ts[readings].tolist()
        for index, place, ratio, field, at in zip(readings, places, ratios, fields, times, strict=True):
            sensor = held.get(place)
            if sensor is None:
                sensor = held[place] = list(sensors[place].tolist())
            phase, critical, worst_field, streak, count, serial, started_at, worst = sensor
            raised = 1.0
            if governor is not None:
                severity = governor.severity(int(chunk.rows[index]))
            change: Literal["firing", "resolved"] | None = None
            if ratio >= 1:
                if phase == CALM:
                    phase, started_at, worst, count, streak, critical = PENDING, at, -math.inf, 0, 0, 0
                count += 1
                if ratio > worst:
                    worst, worst_field = ratio, field
                if phase != OPEN:
                    streak += 1
                    if streak >= config.open_after and at - started_at >= config.min_duration_s:
                        allowed: float | None = 1.0
                        if governor is not None:
                            row = int(chunk.rows[index])
                            allowed = governor.allows(row, ratio, at, index, held=phase == HELD)
                        if allowed is None:
                            phase = HELD
                        else:
                            phase, streak, raised = OPEN, 0, allowed
                            critical = int(worst >= CRITICAL_RATIO)
                            change = "firing"
                else:
                    streak = 0
                    if ratio >= CRITICAL_RATIO and not critical:
                        critical = 1
                        change = None if severity == CRITICAL else "firing"
            elif phase in (PENDING, HELD):
                phase, streak = CALM, 0
            elif phase == OPEN:
                streak = streak + 1 if ratio < config.resolve_below else 0
                if streak >= config.resolve_after:
                    change = "resolved"
            sensor[:] = phase, critical, worst_field, streak, count, serial, started_at, worst
            if change is not None:
                event = self._event(change, index, sensor, chunk, severity)
                event.threshold *= raised
                events.append(event)
                if change == "resolved":
                    sensor[:] = CALM, 0, worst_field, 0, count, serial + 1, started_at, worst
        for place, sensor in held.items():
            sensors[place] = tuple(sensor)
        return events

    def _event(
        self,
        state: Literal["firing", "resolved"],
        index: int,
        sensor: list[Any],
        chunk: _Chunk,
        severity: str | None = None,
    ) -> AlertEvent:
        """Tell of a change at a reading; `sensor` is the sensor's state, in the order of `dtype`."""
        _, critical, field, _, count, serial, started_at, _ = sensor
        return AlertEvent(
            state=state,
            row=int(chunk.rows[index]),
            index=index,
            field=field,
            value=float(chunk.values[index, field]),
            score=chunk.verdict.score_of(index, field),
            threshold=chunk.verdict.threshold_of(index, field),
            severity=CRITICAL if critical else (severity or self.config.severity),
            started_at=started_at,
            ts=float(chunk.ts[index]),
            count=count,
            serial=serial,
            limit=chunk.verdict.limit_of(index) if field == int(chunk.verdict.field[index]) else None,
        )


def alert_id(stream: str, sensor_id: str, rule: str, started_at: float, serial: int) -> str:
    """Return 16 hexadecimal digits that name one alert of one sensor, whoever works them out.

    Args:
        stream: the stream's name.
        sensor_id: the sensor.
        rule: what judged it, such as the detector's name.
        started_at: event time of its first anomalous reading, seconds since 1970.
        serial: how many alerts this sensor had before.
    """
    key = "\0".join((stream, sensor_id, rule, repr(started_at), str(serial)))
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def describe(event: AlertEvent, field: str, unit: str, why: str) -> str:
    """Say in plain words what an alert is about.

    Args:
        event: the alert.
        field: the name of its field.
        unit: of the field, or "".
        why: what the detector says of this reading.

    >>> event = AlertEvent("firing", 0, 0, 0, 92.4, 6.1, 6.0, "warning", 0.0, 0.0, 1, 0)
    >>> describe(event, "temperature", "°C", "6.1 sd above the usual 71.0 ± 3.5")
    'temperature 92.4 °C: 6.1 sd above the usual 71.0 ± 3.5'
    """
    value = "has no value" if math.isnan(event.value) else f"{event.value:.6g} {unit}".rstrip()
    if event.limit is not None:
        side = "above" if event.value > event.limit else "below"
        limit = f"{side} its limit of {event.limit:.6g} {unit}".rstrip()
        why = f"{limit}; {why}" if why else limit
    text = f"{field} {value}" + (f": {why}" if why else "")
    return text + ending(event)


def ending(event: AlertEvent) -> str:
    """Say how long an alert lasted that is resolved; "" for any other."""
    if event.state == "firing":
        return ""
    lasted = max(event.ts - event.started_at, 0.0)
    plural = "" if event.count == 1 else "s"
    return f"; usual again after {event.count} anomalous reading{plural} in {lasted:.6g} s"
