"""Alarm budgets: at most so many alerts in 24 hours for a group of sensors.

The budget is held by raising the threshold. With the share u of it used in the last 24 h (of event time),
an alert opens only from the ratio f of score and threshold on:

    f = 1                    u < 1/2
    f = 1 / (2 (1 - u))      1/2 <= u < 1: 2 at 3/4, 5 at 9/10
    f = infinity             u = 1

and as alerts leave the 24 h, f falls again. So what is strangest still comes through while the budget runs
low, and no 24 h hold more alerts than the budget. What is held back is counted: in a metric, in
`suppressed` of the group's next alert, and in an alert of the rule `budget` that is told after 1, 2, 4, 8
... of them.

A budget below one a day is one in as many days. Each partition of a stream has its part of the budget
(budget / partitions), since workers don't ask each other.

Pure and deterministic: the same for any cut of the stream. Openings are kept with their place in the log,
so that a replay after a crash finds what was there when a reading was first judged.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from anomaly.thresholds import Budget

DAY_S = 86_400.0
#: From this share of the budget on the threshold rises.
FREE = 0.5

#: Offset and index of a reading: its place in the log.
Place = tuple[int, int]


class BudgetNotice(NamedTuple):
    """What is told of a budget: alerts were held back, or no longer are."""

    firing: bool
    group: str
    per_day: float
    held: int
    since: float
    ts: float


class _Group(msgspec.Struct):
    per_day: float
    opened: list[tuple[float, int, int]] = []
    held: int = 0
    #: Since the last alert of the group.
    held_since: int = 0
    #: What the open notice says: when it began, 0 for none, and after how many alerts it was told last.
    notice_at: float = 0.0
    told: int = 0


class _State(msgspec.Struct):
    groups: dict[str, _Group]
    newest: float = -math.inf


def factor(used: int, allowed: int) -> float:
    """Return by how much a budget raises the threshold.

    >>> [factor(used, 8) for used in (0, 3, 4, 6, 7, 8)]
    [1.0, 1.0, 1.0, 2.0, 4.0, inf]
    """
    share = used / allowed
    if share < FREE:
        return 1.0
    return FREE / (1.0 - share) if share < 1.0 else math.inf


def window(per_day: float) -> tuple[float, int]:
    """Return the length of the window in seconds and the alerts that may open in it."""
    length = DAY_S * max(1.0, 1.0 / per_day)
    return length, max(1, math.floor(per_day * length / DAY_S + 1e-9))


class Budgets:
    """The budgets of one partition.

    Args:
        share: the part of each budget that is this partition's.
    """

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self._state = _State({})
        # up to here the log is in the state that was restored
        self._applied = -1
        self._purge_before = -math.inf
        self.changed = False
        #: Told since the last `take_notices`, and how many were held back, by group.
        self._notices: list[BudgetNotice] = []
        self._held: dict[str, int] = {}

    def allows(self, budget: Budget, ratio: float, ts: float, place: Place, *, counted: bool) -> float | None:
        """Ask whether an alert may open.

        Args:
            budget: of the sensor.
            ratio: score over threshold of the reading, at least 1.
            ts: its event time.
            place: its place in the log.
            counted: whether this alert has been held back already: it counts once.

        Returns:
            By how much the threshold was raised; None: the alert is held back.
        """
        group = self._state.groups.get(budget.group)
        if group is None:
            group = self._state.groups[budget.group] = _Group(0.0)
        group.per_day = budget.per_day
        length, allowed = window(budget.per_day * self._share)
        used = sum(t > ts - length and (o, i) < place for t, o, i in group.opened)
        raised = factor(used, allowed)
        replayed = place[0] <= self._applied
        self.changed = True
        self._state.newest = max(self._state.newest, ts)
        if ratio >= raised:
            if not replayed:
                group.opened.append((ts, *place))
                if raised == 1.0:
                    self._close(budget.group, group, ts)
            return raised
        if not (counted or replayed):
            self._hold(budget.group, group, ts)
        return None

    def _hold(self, name: str, group: _Group, ts: float) -> None:
        group.held_since += 1
        self._held[name] = self._held.get(name, 0) + 1
        if not group.notice_at:
            group.notice_at, group.held, group.told = ts, 0, 0
        group.held += 1
        if group.held >= 2 * group.told:
            group.told = group.held
            self._notices.append(BudgetNotice(True, name, group.per_day, group.held, group.notice_at, ts))

    def _close(self, name: str, group: _Group, ts: float) -> None:
        if group.notice_at:
            self._notices.append(BudgetNotice(False, name, group.per_day, group.held, group.notice_at, ts))
            group.notice_at = 0.0

    def take_suppressed(self, group: str) -> int:
        """Return how many alerts of a group were held back since its last one, and begin anew."""
        found = self._state.groups[group]
        count, found.held_since = found.held_since, 0
        return count

    @property
    def has_notices(self) -> bool:
        """Whether a notice is open."""
        return any(group.notice_at for group in self._state.groups.values())

    def relax(self, ts: float) -> None:
        """Close the notices of groups whose threshold is back to its own at an event time."""
        for name, group in self._state.groups.items():
            if group.notice_at:
                length, allowed = window(group.per_day * self._share)
                if factor(sum(t > ts - length for t, _, _ in group.opened), allowed) == 1.0:
                    self._close(name, group, ts)
                    self.changed = True

    def take_notices(self) -> list[BudgetNotice]:
        """Return what is to be told since the last call."""
        notices, self._notices = self._notices, []
        return notices

    def take_held(self) -> dict[str, int]:
        """Return how many alerts were held back since the last call, by group."""
        held, self._held = self._held, {}
        return held

    def dump(self) -> bytes:
        """Return the state as bytes."""
        self.changed = False
        for group in self._state.groups.values():
            longest = window(group.per_day * self._share)[0]
            group.opened = [entry for entry in group.opened if entry[0] > self._purge_before - longest]
        # what the checkpoint before could still see is kept for one more: a replay may begin there
        self._purge_before = self._state.newest
        return msgspec.msgpack.encode(self._state)

    def restore(self, data: bytes, applied: int) -> None:
        """Take over a state, which knows the log up to an offset."""
        self._state = msgspec.msgpack.decode(data, type=_State)
        self._applied = applied
