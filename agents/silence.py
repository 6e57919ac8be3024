"""Sources that fall silent, as alerts: what one partition knows of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from anomaly.alerts import alert_id
from anomaly.silence import PHASES, Return, Scope, hear, overdue
from streams import metrics
from streams.records import Alert

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from agents.alerting import StreamAlerting
    from anomaly.detector import FloatArray, RowArray
    from streams.state import SensorState

RULE = "silent"


class _Outage(msgspec.Struct):
    """Several sensors that are silent as one."""

    scope: Scope
    since: float
    members: list[str]
    score: float
    threshold: float


class SilenceWatch:
    """Which sensors of a partition are silent.

    Args:
        shared: of the stream.
        state: gives the state of the sensors, with a part `heard`.
        saved: what `dump` returned, or nothing.
    """

    def __init__(self, shared: StreamAlerting, state: Callable[[], SensorState], saved: bytes) -> None:
        self._shared, self._state = shared, state
        config = shared.stream.alerts
        self._after, self._least_s = config.silent_after or 0.0, config.silent_min_s
        self._outages: dict[str, _Outage] = {}
        if saved:
            self._outages = msgspec.msgpack.decode(saved, type=dict[str, _Outage])
        self._newest = float(state().rows["heard"]["heard"].max(initial=0.0))
        self._handled_at: float | None = None
        self._returns: list[tuple[int, Alert]] = []
        self._sites: dict[str, int] = {}
        self._site_of: NDArray[np.int32] = np.empty(0, np.int32)
        self._sensors = 0
        self.changed = False

    def dump(self) -> bytes:
        """Return the outages as bytes."""
        self.changed = False
        return msgspec.msgpack.encode(self._outages)

    def clock(self, now: float) -> float:
        """Return the partition's time, by its readings and the time that has passed since.

        Args:
            now: wall clock, seconds since 1970.
        """
        if self._handled_at is None:
            self._handled_at = now
        return self._newest + max(now - self._handled_at, 0.0)

    # -- readings

    def hear(
        self,
        rows: RowArray,
        ts: FloatArray,
        published: FloatArray,
        fresh: NDArray[np.bool_] | None,
        now: float,
    ) -> None:
        """Take readings in; `take_returns` then has the silences that they end."""
        self._newest = max(self._newest, float(published.max(initial=0.0)))
        self._handled_at = now
        picked = None if fresh is None else np.flatnonzero(fresh)
        if picked is not None:
            rows, ts, published = rows[picked], ts[picked], published[picked]
        state = self._state()
        for end in hear(state.rows["heard"], rows, ts, published, self._after, self._least_s):
            index = end.reading if picked is None else int(picked[end.reading])
            alert = self._ended(end, state.ids[end.row], float(published[end.reading]))
            if alert is not None:
                self._returns.append((index, alert))

    def take_returns(self) -> list[tuple[int, Alert]]:
        """Return the alerts that are resolved since the last call, each with the reading that did it."""
        returns, self._returns = self._returns, []
        return returns

    def _ended(self, end: Return, sensor: str, at: float) -> Alert | None:
        scope: Scope = PHASES[end.phase - 1] if end.phase else "sensor"
        if scope == "sensor":
            return self._alert("resolved", "sensor", sensor, end.since, at, end.gap_s, end.usual_s)
        key = self._shared.site(sensor) if scope == "link" else ""
        outage = self._outages.pop(key, None)
        if outage is None:  # another sensor has ended it
            return None
        self.changed = True
        return self._outage_alert("resolved", key, outage, at, f"; {sensor} is back")

    # -- time

    def counts(self, clock: float) -> tuple[int, Counter[str], Counter[str]]:
        """Return how many sensors are missing, and by site how many are quiet and how many speak."""
        state = self._state()
        heard = state.rows["heard"]
        missing, quiet = overdue(heard, clock, self._after, self._least_s)
        missing |= self._left_over(quiet, clock)
        count = int(np.count_nonzero(missing))
        if not count:
            return 0, Counter(), Counter()
        sites = self._site_codes(state)
        names = list(self._sites)
        speaking = (heard["n"] > 0) & ~quiet

        def by_site(which: NDArray[np.bool_]) -> Counter[str]:
            totals = np.bincount(sites[which]).tolist()
            return Counter({names[code]: total for code, total in enumerate(totals) if total})

        return count, by_site(quiet), by_site(speaking)

    def silent(self, clock: float, blamed: Mapping[str, Scope]) -> list[Alert]:
        """Tell of the sensors that are missing, which are silent from now on.

        Args:
            clock: the partition's.
            blamed: by site, who is to blame.
        """
        state = self._state()
        heard = state.rows["heard"]
        missing, quiet = overdue(heard, clock, self._after, self._least_s)
        missing |= self._left_over(quiet, clock)
        sites, names = self._site_codes(state), list(self._sites)
        alerts: list[Alert] = []
        outages: dict[str, list[int]] = {}
        for row in np.flatnonzero(missing).tolist():
            site = names[sites[row]]
            scope = blamed.get(site, "sensor")
            if scope == "sensor":
                self._set_phase(state, [row], scope)
                since, usual = float(heard["heard"][row]), float(heard["gap"][row])
                alerts.append(
                    self._alert("firing", scope, state.ids[row], since, clock, clock - since, usual)
                )
            else:
                outages.setdefault(site if scope == "link" else "", []).append(row)
        for key, rows in outages.items():
            scope = "link" if key else "broker"
            here = sites == self._sites[key] if key else np.ones(len(sites), np.bool_)
            if (here & ~quiet & (heard["n"] > 0)).any():
                continue  # somebody has spoken since they were counted: the next look tells better
            mine = here & quiet & (heard["phase"] != 1)
            members = np.union1d(np.flatnonzero(mine), rows).tolist()
            self._set_phase(state, members, scope)
            known = self._outages.get(key)
            since = float(heard["heard"][members].max()) if known is None else known.since
            usual = max(float(heard["gap"][members].max()), 1e-3)
            outage = self._outages[key] = _Outage(
                scope,
                since,
                sorted(state.ids[row] for row in members),
                (clock - since) / usual,
                max(self._after, self._least_s / usual),
            )
            self.changed = True
            if known is None:
                alerts.append(self._outage_alert("firing", key, outage, clock, ""))
        return alerts

    def _left_over(self, quiet: NDArray[np.bool_], clock: float) -> NDArray[np.bool_]:
        """Tell which sensors are still missing after the outage that they were part of has ended."""
        state = self._state()
        heard = state.rows["heard"]
        left = np.zeros(len(heard), np.bool_)
        for row in np.flatnonzero(quiet & (heard["phase"] > 1)).tolist():
            scope = PHASES[heard["phase"][row] - 1]
            key = self._shared.site(state.ids[row]) if scope == "link" else ""
            left[row] = key not in self._outages
        waited = clock - heard["heard"]
        left &= waited > np.maximum(self._after * heard["gap"], self._least_s)
        return left

    def _set_phase(self, state: SensorState, rows: list[int], scope: Scope) -> None:
        at = np.array(rows)
        state.rows["heard"]["phase"][at] = 1 + PHASES.index(scope)
        state.mark(at)

    def _site_codes(self, state: SensorState) -> NDArray[np.int32]:
        if self._sensors != len(state):
            self._sensors, self._sites = len(state), {}
            # rows without a sensor are of the site "", where nobody is quiet or speaks
            sites = (self._shared.site(sensor) if sensor else "" for sensor in state.ids)
            self._site_of = np.array([self._sites.setdefault(s, len(self._sites)) for s in sites], np.int32)
        return self._site_of

    # -- records

    def _outage_alert(
        self, change: Literal["firing", "resolved"], site: str, outage: _Outage, at: float, more: str
    ) -> Alert:
        count = len(outage.members)
        if outage.scope == "link":
            what = f"all {count} sensors of {site} are silent: the link to the site"
        else:
            what = f"nothing is heard of any sensor, {count} in all: the broker, or the way to it"
        waited = max(at - outage.since, 0.0)
        words = (
            f"{what}; last heard {waited:.0f} s ago"
            if change == "firing"
            else f"{what}{more} after {waited:.0f} s"
        )
        return self._record(
            change, outage.scope, site or self._shared.stream.name, outage.since, at, words,
            outage.score, outage.threshold, outage.members,
        )  # fmt: skip

    def _alert(
        self,
        change: Literal["firing", "resolved"],
        scope: Scope,
        sensor: str,
        since: float,
        at: float,
        gap_s: float,
        usual_s: float,
    ) -> Alert:
        usual = max(usual_s, 1e-3)
        words = f"silent for {gap_s:.0f} s: {gap_s / usual:.0f} times its usual gap of {usual_s:.3g} s"
        if change == "resolved":
            words = f"heard again; {words}"
        return self._record(
            change,
            scope,
            sensor,
            since,
            at,
            words,
            gap_s / usual,
            max(self._after, self._least_s / usual),
            [],
        )

    def _record(
        self,
        change: Literal["firing", "resolved"],
        scope: Scope,
        source: str,
        since: float,
        at: float,
        words: str,
        score: float,
        threshold: float,
        members: list[str],
    ) -> Alert:
        stream = self._shared.stream
        if change == "firing":
            metrics.SILENT_SOURCES.labels(stream.name, scope).inc()
        return Alert(
            id=alert_id(stream.name, source, RULE, since, PHASES.index(scope)),
            key=f"{stream.name}/{source}",
            rule=RULE,
            severity=stream.alerts.severity if scope == "sensor" else "critical",
            state=change,
            source=source,
            field="",
            value=None,
            score=score,
            threshold=threshold,
            started_at=since,
            ts=at,
            count=len(members) or 1,
            explanation=words,
            scope=scope,
            members=members,
        )
