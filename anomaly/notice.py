"""What a companion of the detector has to say: an event for the alerts topic that no score gave rise to.

A companion (failure prediction, drift) reads the same chunks as the detector, has state of its own, one
row a sensor, and obeys the same rules: any cut of the readings gives the same notices, no clock, no
unseeded chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anomaly.alerts import alert_id


@dataclass(slots=True)
class Notice:
    """A change of an alert of a companion.

    Attributes:
        rule: what says it: "prognosis" or "drift".
        subject: tells apart what one rule watches on one sensor ("temperature/high").
        state: "firing" or "resolved".
        row: the sensor's row in the state.
        index: the reading of the chunk at which it was said.
        field: the field, by number.
        value: the value it is about, in the field's unit.
        score: how strongly, in the rule's own measure.
        threshold: the score from which it is said.
        severity: "info", "warning" or "critical".
        started_at: event time at which the alert began, seconds since 1970.
        ts: event time of the reading.
        count: steps of this alert so far, in the rule's own measure.
        serial: how many such alerts the sensor had before; tells apart alerts that start at one time.
        explanation: in words.
    """

    rule: str
    subject: str
    state: Literal["firing", "resolved"]
    row: int
    index: int
    field: int
    value: float
    score: float
    threshold: float
    severity: Literal["info", "warning", "critical"]
    started_at: float
    ts: float
    count: int
    serial: int
    explanation: str

    def alert_id(self, stream: str, sensor_id: str) -> str:
        """Return the id that all events of this alert carry, also when the stream is replayed."""
        return alert_id(stream, sensor_id, f"{self.rule}/{self.subject}", self.started_at, self.serial)

    def key(self, stream: str, sensor_id: str) -> str:
        """Return what the alert is about, for consumers that keep one state for each key."""
        return f"{stream}/{sensor_id}/{self.rule}/{self.subject}"
