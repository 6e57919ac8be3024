"""Alerts of one site that begin together are a group, with one alert of its own.

The window is a fixed slot of time: alerts whose first anomalous readings (`started_at`) fall into the same
`window_s` seconds since 1970 belong together. So each alert knows the id of its group by itself, whatever
partition or worker it is in, and whatever comes later; a burst across the edge of a slot makes two groups.

A group has an alert from `least` sensors on; it is told again when the sensors have doubled or the severity
has risen, and resolved when all its alerts are. Each partition tells of its own sensors, under the one id.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import msgspec

RANK = {"info": 0, "warning": 1, "critical": 2}


class GroupEvent(NamedTuple):
    """A group that opened, worsened or resolved."""

    firing: bool
    group_id: str
    site: str
    severity: str
    members: list[str]
    started_at: float
    ts: float


class _Group(msgspec.Struct):
    site: str
    started_at: float
    severity: str
    members: list[str] = []
    firing: list[str] = []
    told: int = 0
    told_severity: str = "info"


def group_id(stream: str, site: str, started_at: float, window_s: float) -> str:
    """Return the id of the group that an alert belongs to, 16 hexadecimal digits."""
    slot = math.floor(started_at / window_s)
    key = "\0".join((stream, site, repr(window_s), str(slot)))
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


class AlertGroups:
    """The groups of one partition that have alerts which are firing.

    Args:
        least: sensors from which on a group is told of.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._groups: dict[str, _Group] = {}
        self.changed = False

    def take(
        self,
        name: str,
        site: str,
        sensor: str,
        *,
        firing: bool,
        severity: str,
        started_at: float,
        ts: float,
    ) -> GroupEvent | None:
        """Take in a change of an alert.

        Args:
            name: the group's id.
            site: its site.
            sensor: the alert's sensor.
            firing: whether the alert opened or worsened; else it is resolved.
            severity: of the alert.
            started_at: event time of its first anomalous reading.
            ts: event time of the change.

        Returns:
            What is to be told of the group, if anything.
        """
        group = self._groups.get(name)
        if group is None:
            if not firing:
                return None
            group = self._groups[name] = _Group(site, started_at, severity)
        self.changed = True
        group.started_at = min(group.started_at, started_at)
        if firing:
            if sensor not in group.members:
                group.members.append(sensor)
            if sensor not in group.firing:
                group.firing.append(sensor)
            if RANK[severity] > RANK[group.severity]:
                group.severity = severity
            worse = group.told and RANK[group.severity] > RANK[group.told_severity]
            if len(group.members) < self._least or not (worse or len(group.members) >= 2 * group.told):
                return None
            group.told, group.told_severity = len(group.members), group.severity
            return self._event(name, group, ts)
        if sensor in group.firing:
            group.firing.remove(sensor)
        if group.firing:
            return None
        del self._groups[name]
        return self._event(name, group, ts) if group.told else None

    def _event(self, name: str, group: _Group, ts: float) -> GroupEvent:
        members = sorted(group.members)
        return GroupEvent(bool(group.firing), name, group.site, group.severity, members, group.started_at, ts)

    def dump(self) -> bytes:
        """Return the state as bytes."""
        self.changed = False
        return msgspec.msgpack.encode(self._groups)

    def restore(self, data: bytes) -> None:
        """Take over a state."""
        self._groups = msgspec.msgpack.decode(data, type=dict[str, _Group])
