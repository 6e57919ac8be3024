"""What is set while workers run: the records of the compacted control topic, and what holds by them.

A record's key is `<kind>/<id>`, its value JSON, and a tombstone takes it back. `ControlState` is what a
worker knows by the records that it has read so far; it is plain data, and `agents.control` feeds it.
"""

from __future__ import annotations

import functools
import re
from fnmatch import translate
from typing import Any, Final, TypeAlias

import msgspec

from streams.config import ThresholdConfig
from streams.errors import BadRecord

#: An id has no slash, so that a key tells kind and id apart.
_KEY: Final = re.compile(r"(threshold|silence|maintenance|ack|label)/([^/\s]{1,100})")


class ThresholdRule(ThresholdConfig, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """`threshold/<rule>`: a rule as in `[[streams.thresholds]]`, for the streams that match."""

    stream: str = "*"


class Scope(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Which alerts a record is about, by patterns with `*`, `?` and `[...]`."""

    stream: str = "*"
    sensor: str = "*"
    site: str = "*"
    field: str = "*"
    rule: str = "*"
    reason: str = ""
    by: str = ""

    def covers(self, stream: str, sensor: str, site: str, field: str, rule: str) -> bool:
        """Tell whether an alert is meant."""
        pairs = ((self.stream, stream), (self.sensor, sensor), (self.site, site), (self.field, field))
        return all(matches(pattern, text) for pattern, text in (*pairs, (self.rule, rule)))


class Silence(Scope, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """`silence/<id>`: alerts are marked as silenced until a time, seconds since 1970."""

    until: float


class Maintenance(Scope, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """`maintenance/<id>`: alerts are marked as silenced from `start` to `end`, seconds since 1970."""

    start: float
    end: float


class Acknowledgement(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """`ack/<alert>`: somebody looks after the alert; its further messages say so."""

    at: float
    by: str = ""
    note: str = ""


class Label(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """`label/<alert>`: whether the alert was right."""

    false_alarm: bool
    at: float
    by: str = ""
    note: str = ""


ControlRecord: TypeAlias = ThresholdRule | Silence | Maintenance | Acknowledgement | Label

KINDS: Final[dict[str, type[msgspec.Struct]]] = {
    "threshold": ThresholdRule,
    "silence": Silence,
    "maintenance": Maintenance,
    "ack": Acknowledgement,
    "label": Label,
}


@functools.lru_cache(4096)
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def matches(pattern: str, text: str) -> bool:
    """Tell whether a text fits a pattern; capitals count.

    >>> matches("pump-*", "pump-7"), matches("pump-*", "Pump-7"), matches("*", "")
    (True, False, True)
    """
    return pattern == "*" or pattern == text or _pattern(pattern).match(text) is not None


def control_key(kind: str, identity: str) -> str:
    """Return the key of a record.

    Raises:
        BadRecord: there is no such kind, or the id can't be one.
    """
    key = f"{kind}/{identity}" if identity else kind
    if _KEY.fullmatch(key) is None:
        raise BadRecord(
            "bad_control",
            f"the key {key[:120]!r} is none of a control record: write <kind>/<id> with a kind of "
            f"{', '.join(KINDS)} and an id of 1 to 100 characters without slash and space",
        )
    return key


def decode_control(key: bytes | None, value: bytes | None) -> tuple[str, str, ControlRecord | None]:
    """Return kind, id and record of a message; None stands for a record that is taken back.

    Raises:
        BadRecord: it is no control record, with what to do.
    """
    text = (key or b"").decode(errors="replace")
    kind, _, identity = text.partition("/")
    if _KEY.fullmatch(text) is None:
        control_key(text, "")
    if value is None:
        return kind, identity, None
    try:
        record: Any = msgspec.json.decode(value, type=KINDS[kind])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecord("bad_control", f"{text}: {error}") from error
    check_control(text, record)
    return kind, identity, record


def check_control(key: str, record: ControlRecord) -> None:
    """Check what must hold between the values of a record.

    Raises:
        BadRecord: with every fault.
    """
    faults = record.faults() if isinstance(record, ThresholdRule) else {}
    if isinstance(record, Maintenance) and record.start >= record.end:
        faults = {"start": f"{record.start:.0f} is not before end {record.end:.0f}: swap them"}
    if faults:
        told = "; ".join(f"{name}: {what}" if name else what for name, what in faults.items())
        raise BadRecord("bad_control", f"{key}: {told}")


class ControlState:
    """What holds by the records read so far.

    Attributes:
        thresholds, silences, maintenance, acks, labels: records by id.
        version: grows when a threshold rule changes.
    """

    def __init__(self) -> None:
        self.thresholds: dict[str, ThresholdRule] = {}
        self.silences: dict[str, Silence] = {}
        self.maintenance: dict[str, Maintenance] = {}
        self.acks: dict[str, Acknowledgement] = {}
        self.labels: dict[str, Label] = {}
        self.version = 0
        self._by_kind: dict[str, dict[str, Any]] = {
            "threshold": self.thresholds,
            "silence": self.silences,
            "maintenance": self.maintenance,
            "ack": self.acks,
            "label": self.labels,
        }

    def apply(self, key: bytes | None, value: bytes | None) -> str:
        """Take a message in and return its kind.

        What can't be used leaves nothing in force under its key, as after a restart, when compaction has
        taken the record before it.

        Raises:
            BadRecord: it is no control record.
        """
        try:
            kind, identity, record = decode_control(key, value)
        except BadRecord:
            kind, _, identity = (key or b"").decode(errors="replace").partition("/")
            self._set(kind, identity, None)
            raise
        self._set(kind, identity, record)
        return kind

    def _set(self, kind: str, identity: str, record: ControlRecord | None) -> None:
        held = self._by_kind.get(kind)
        if held is None:
            return
        if record is None:
            if held.pop(identity, None) is None:
                return
        else:
            held[identity] = record
        self.version += kind == "threshold"

    def silenced_by(
        self, ts: float, stream: str, sensor: str, site: str, field: str, rule: str
    ) -> str | None:
        """Return the key of a record that silences an alert at an event time, None if there is none."""
        about = (stream, sensor, site, field, rule)
        for identity, silence in self.silences.items():
            if ts < silence.until and silence.covers(*about):
                return f"silence/{identity}"
        for identity, window in self.maintenance.items():
            if window.start <= ts < window.end and window.covers(*about):
                return f"maintenance/{identity}"
        return None
