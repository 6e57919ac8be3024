"""From what happened to the records of the alerts topic: words, ids, and the marks of the control topic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from anomaly.alerts import alert_id, describe, ending
from streams import metrics
from streams.records import Alert

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.alerting import StreamAlerting
    from anomaly.alerts import AlertEvent
    from anomaly.budgets import BudgetNotice
    from anomaly.groups import GroupEvent
    from anomaly.notice import Notice


class AlertRecords:
    """Writes the alerts of one stream.

    Args:
        shared: what the partitions of the stream share.
    """

    def __init__(self, shared: StreamAlerting) -> None:
        self._shared = shared

    def mark(self, alert: Alert) -> Alert:
        """Mark an alert that is silenced or acknowledged by the control topic."""
        control = self._shared.control
        if control.silences or control.maintenance:
            site = alert.source if alert.scope in ("group", "link") else self._shared.site(alert.source)
            by = control.silenced_by(
                alert.ts, self._shared.stream.name, alert.source, site, alert.field, alert.rule
            )
            if by is not None:
                alert = msgspec.structs.replace(alert, silenced=True, silenced_by=by)
                cause = by.partition("/")[0]
                metrics.ALERTS_SILENCED.labels(self._shared.stream.name, cause).inc()
        if control.acks and (alert.id in control.acks or alert.group_id in control.acks):
            alert = msgspec.structs.replace(alert, acknowledged=True)
        return alert

    def of_event(
        self,
        event: AlertEvent,
        sensor: str,
        group: str | None,
        explain: Callable[[int, int], str],
        suppressed: int = 0,
    ) -> Alert:
        """An alert of a sensor; `suppressed` is how many the budget held back before it."""
        stream, detector = self._shared.stream, self._shared.detector
        name = stream.field_names[event.field]
        why = ""
        if event.state == "firing":
            why = explain(event.index, min(event.field, len(detector.thresholds) - 1))
        explanation = describe(event, name, self._shared.units[event.field], why)
        if suppressed:
            plural = "" if suppressed == 1 else "s"
            explanation += f"; the budget held back {suppressed} alert{plural} before this one"
        alert = Alert(
            id=event.alert_id(stream.name, sensor, detector.name),
            key=f"{stream.name}/{sensor}",
            rule=detector.name,
            severity=event.severity,  # type: ignore[arg-type]
            state=event.state,
            source=sensor,
            field=name,
            value=None if event.value != event.value else event.value,
            score=event.score,
            threshold=event.threshold,
            started_at=event.started_at,
            ts=event.ts,
            count=event.count,
            explanation=explanation,
            limit=event.limit,
            group_id=group,
            suppressed=suppressed,
        )
        return self.mark(alert)

    def of_group(self, event: GroupEvent) -> Alert:
        """The alert of a group of sensors."""
        stream = self._shared.stream
        count = len(event.members)
        shown = ", ".join(event.members[:5]) + (f" and {count - 5} more" if count > 5 else "")
        words = f"{count} sensors of {event.site} began within {stream.alerts.group_window_s:g} s: {shown}"
        if event.firing:
            metrics.ALERT_GROUPS.labels(stream.name).inc()
        return self.mark(
            Alert(
                id=event.group_id,
                key=f"{stream.name}/{event.site}",
                rule="group",
                severity=event.severity,  # type: ignore[arg-type]
                state="firing" if event.firing else "resolved",
                source=event.site,
                field="",
                value=None,
                score=float(count),
                threshold=float(stream.alerts.group_min),
                started_at=event.started_at,
                ts=event.ts,
                count=count,
                explanation=words if event.firing else f"{words}; all usual again",
                scope="group",
                group_id=event.group_id,
                members=event.members,
            )
        )

    def of_join(
        self, event: AlertEvent, group: str, member: tuple[str, str] | None, sensors: list[str], why: str
    ) -> Alert:
        """An alert of sensors that don't go together as usual.

        Args:
            event: what happened to their group.
            group: its name.
            member: name and unit of the member that is worst; None: the score is of all together.
            sensors: that the members are read by.
            why: what the detector says.
        """
        stream = self._shared.stream
        if member is None:
            names = ", ".join(stream.join.members if stream.join is not None else ())
            words = f"{names} together" + (f": {why}" if why else "") + ending(event)
        else:
            words = describe(event, *member, why)
        value = None if member is None or event.value != event.value else event.value
        return self.mark(
            Alert(
                id=event.alert_id(stream.name, group, "join"),
                key=f"{stream.name}/{group}/join",
                rule="join",
                severity=event.severity,  # type: ignore[arg-type]
                state=event.state,
                source=group,
                field="" if member is None else member[0],
                value=value,
                score=event.score,
                threshold=event.threshold,
                started_at=event.started_at,
                ts=event.ts,
                count=event.count,
                explanation=f"{group}: {words}",
                scope="group",
                members=sensors,
            )
        )

    def of_budget(self, notice: BudgetNotice) -> Alert:
        """What is told of a budget that holds alerts back, or is free again."""
        stream = self._shared.stream
        partitions = self._shared.partitions
        part = f", of which this partition has 1/{partitions}" if partitions > 1 else ""
        words = (
            f"budget of {notice.per_day:g} alerts a day for {notice.group}{part}: {notice.held} held back "
            f"in {max(notice.ts - notice.since, 0):.0f} s"
        )
        return self.mark(
            Alert(
                id=alert_id(stream.name, notice.group, "budget", notice.since, 0),
                key=f"{stream.name}/{notice.group}",
                rule="budget",
                severity="warning",
                state="firing" if notice.firing else "resolved",
                source=notice.group,
                field="",
                value=None,
                score=float(notice.held),
                threshold=notice.per_day,
                started_at=notice.since,
                ts=notice.ts,
                count=notice.held,
                explanation=words if notice.firing else f"{words}; free again",
                scope="budget",
                suppressed=notice.held,
            )
        )

    def of_notice(self, notice: Notice, sensor: str) -> Alert:
        """What a companion of the detector says of a sensor: failure prediction, drift."""
        stream = self._shared.stream
        return self.mark(
            Alert(
                id=notice.alert_id(stream.name, sensor),
                key=notice.key(stream.name, sensor),
                rule=notice.rule,
                severity=notice.severity,
                state=notice.state,
                source=sensor,
                field=stream.field_names[notice.field],
                value=notice.value,
                score=notice.score,
                threshold=notice.threshold,
                started_at=notice.started_at,
                ts=notice.ts,
                count=notice.count,
                explanation=notice.explanation,
            )
        )
