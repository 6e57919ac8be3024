from __future__ import annotations

from typing import Any

from anomaly.groups import AlertGroups, GroupEvent, group_id


def take(
    groups: AlertGroups, sensor: str, firing: bool = True, ts: float = 10.0, **more: Any
) -> GroupEvent | None:
    severity = more.get("severity", "warning")
    return groups.take("g", "east", sensor, firing=firing, severity=severity, started_at=ts, ts=ts)


def test_alerts_of_one_site_and_slot_share_an_id() -> None:
    ids = {group_id("plant", "east", at, 60) for at in (120.0, 130.0, 179.9)}
    assert len(ids) == 1
    others = {
        group_id("plant", "west", 120, 60),
        group_id("plant", "east", 180, 60),
        group_id("p", "east", 120, 60),
    }
    assert len(ids | others) == 4


def test_a_group_is_told_of_from_enough_sensors_on_and_when_it_has_doubled() -> None:
    groups = AlertGroups(3)
    told = [take(groups, f"s{n % 7}") for n in range(14)]
    assert [i for i, event in enumerate(told) if event] == [2, 5]
    assert told[2] is not None
    assert told[2].members == ["s0", "s1", "s2"]
    assert told[2].firing


def test_a_group_is_told_of_when_its_severity_rises_and_resolved_with_its_last_alert() -> None:
    groups = AlertGroups(2)
    assert take(groups, "a") is None
    assert take(groups, "b") is not None
    worse = take(groups, "a", severity="critical")
    assert worse is not None
    assert worse.severity == "critical"
    assert take(groups, "a", firing=False) is None
    again = AlertGroups(2)
    again.restore(groups.dump())
    end = take(again, "b", firing=False)
    assert end is not None
    assert (end.firing, end.members) == (False, ["a", "b"])


def test_a_group_that_was_never_large_enough_ends_without_a_word() -> None:
    groups = AlertGroups(3)
    assert [take(groups, "a"), take(groups, "b"), take(groups, "a", False), take(groups, "b", False)] == [
        None
    ] * 4
    assert take(groups, "a", False) is None
