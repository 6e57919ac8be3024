from __future__ import annotations

import doctest
import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import anomaly.alerts
from anomaly import AlertEvent, AlertMachine, alert_id, describe, judge
from streams.config import AlertConfig

NAN = math.nan
THRESHOLD = 10.0


def run(
    machine: AlertMachine, scores: list[list[float]], rows: list[int] | None = None, cut: int | None = None
) -> list[AlertEvent]:
    """Give readings a second apart, `cut` at a time; `index` counts over all of them."""
    table = np.array(scores, float).reshape(len(scores), -1)
    at = np.array(rows or [0] * len(scores), np.int32)
    state = machine.init(int(at.max(initial=0)) + 1)
    ts = 1000.0 + np.arange(len(at))
    events = []
    for begin in range(0, len(at), cut or max(len(at), 1)):
        part = slice(begin, begin + (cut or len(at)))
        verdict = judge(table[part], np.full(table.shape[1], THRESHOLD))
        for event in machine.update(state, at[part], table[part] * 2, ts[part], verdict):
            event.index += begin
            events.append(event)
    return events


def story(events: list[AlertEvent]) -> list[tuple[int, str, str]]:
    return [(event.index, event.state, event.severity) for event in events]


def of(*scores: float) -> list[list[float]]:
    return [[score] for score in scores]


def test_an_alert_opens_and_resolves_with_hysteresis() -> None:
    machine = AlertMachine(AlertConfig(open_after=1, resolve_below=0.7, resolve_after=2))
    events = run(machine, of(1, 12, 8, 1, 8, 1, 1, 1))
    assert story(events) == [(1, "firing", "warning"), (6, "resolved", "warning")]
    opened, resolved = events
    assert (opened.score, opened.value, opened.threshold, opened.count) == (12.0, 24.0, THRESHOLD, 1)
    assert (opened.started_at, resolved.started_at, resolved.ts) == (1001.0, 1001.0, 1006.0)


def test_open_after_wants_anomalous_readings_in_a_row() -> None:
    machine = AlertMachine(AlertConfig(open_after=3))
    events = run(machine, of(12, 12, 9, 12, 12, 13))
    assert story(events) == [(5, "firing", "warning")]
    assert events[0].started_at == 1003.0
    assert events[0].count == 3


def test_anomalous_readings_must_last_for_the_minimum_duration() -> None:
    config = AlertConfig(open_after=2, min_duration_s=3, resolve_after=1)
    for cut in (1, 20):
        events = run(AlertMachine(config), of(12, 12, 12, 1, 12, 12, 12, 12, 12, 1), cut=cut)
        assert story(events) == [(7, "firing", "warning"), (9, "resolved", "warning")]
        assert events[0].started_at == 1004.0
    # the same by rounds over many sensors
    rows = [row for _ in range(5) for row in range(50)]
    many = run(AlertMachine(config), of(*[12.0] * 250), rows)
    assert [event.index for event in many] == list(range(50, 100))


def test_an_alert_worsens_once() -> None:
    machine = AlertMachine(AlertConfig(resolve_after=1))
    events = run(machine, of(12, 15, 20, 30, 12, 1, 25))
    assert story(events) == [
        (0, "firing", "warning"),
        (2, "firing", "critical"),
        (5, "resolved", "critical"),
        (6, "firing", "critical"),
    ]
    assert [event.count for event in events] == [1, 3, 5, 1]


def test_an_alert_that_is_critical_by_configuration_does_not_worsen() -> None:
    machine = AlertMachine(AlertConfig(severity="critical", resolve_after=1))
    assert story(run(machine, of(12, 30, 1))) == [(0, "firing", "critical"), (2, "resolved", "critical")]


def test_a_reading_without_score_changes_nothing() -> None:
    machine = AlertMachine(AlertConfig(open_after=2, resolve_after=2))
    assert story(run(machine, of(12, NAN, 12, NAN, 1, NAN, NAN, 1))) == [
        (2, "firing", "warning"),
        (7, "resolved", "warning"),
    ]


def test_all_events_of_an_alert_carry_one_id_and_the_next_alert_another() -> None:
    machine = AlertMachine(AlertConfig(resolve_after=1))
    events = run(machine, of(12, 30, 1, 12, 1))
    ids = [event.alert_id("plant", "boiler-7", "ewz") for event in events]
    assert ids[0] == ids[1] == ids[2] != ids[3] == ids[4]
    again = [event.alert_id("plant", "boiler-7", "ewz") for event in run(machine, of(12, 30, 1, 12, 1))]
    assert again == ids
    assert ids[0] != events[0].alert_id("plant", "boiler-8", "ewz")


def test_alerts_that_start_at_one_time_are_told_apart() -> None:
    assert alert_id("s", "a", "ewz", 5.0, 0) != alert_id("s", "a", "ewz", 5.0, 1)


def test_an_alert_keeps_to_its_worst_field() -> None:
    machine = AlertMachine(AlertConfig(resolve_after=1))
    events = run(machine, [[11, 1, 1], [11, 12, 1], [11, 1, 25], [NAN, 2, 1]])
    assert [event.field for event in events] == [0, 2, 2]
    assert [event.score for event in events] == [11.0, 25.0, 1.0]


def plain(machine: AlertMachine, ratios: Any, rows: Any) -> list[tuple[int, str, str, int, int]]:
    """The machine as its description has it."""
    config, events, held = machine.config, [], {}
    for i, (row, ratio) in enumerate(zip(rows, ratios, strict=True)):
        if math.isnan(ratio):
            continue
        s = held.setdefault(row, {"open": False, "run": 0, "quiet": 0, "count": 0, "sev": "", "peak": 0.0})
        if ratio >= 1:
            s["run"], s["quiet"], s["count"] = s["run"] + 1, 0, s["count"] + 1
            s["peak"] = max(s["peak"], ratio)
            severity = "critical" if s["peak"] >= 2 else config.severity
            if (s["open"] and severity != s["sev"]) or (not s["open"] and s["run"] >= config.open_after):
                s["open"], s["sev"] = True, severity
                events.append((i, "firing", severity, row, s["count"]))
        else:
            s["run"] = 0
            s["quiet"] = s["quiet"] + 1 if ratio < config.resolve_below else 0
            if s["open"] and s["quiet"] >= config.resolve_after:
                events.append((i, "resolved", s["sev"], row, s["count"]))
                s["open"] = False
            if not s["open"]:
                s["count"], s["peak"] = 0, 0.0
    return events


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 9999),
    n=st.integers(1, 800),
    sensors=st.sampled_from([1, 2, 10, 100, 400]),
    strange=st.sampled_from([0.01, 0.3, 0.9]),
    open_after=st.integers(1, 3),
    resolve_after=st.integers(1, 3),
    severity=st.sampled_from(["warning", "critical"]),
    cut=st.integers(1, 800),
)
def test_any_cut_gives_the_events_of_the_plain_machine(
    seed: int,
    n: int,
    sensors: int,
    strange: float,
    open_after: int,
    resolve_after: int,
    severity: Any,
    cut: int,
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, sensors, n)
    ratios = np.where(rng.random(n) < strange, rng.choice([1.0, 1.5, 2.5], n), rng.choice([0.1, 0.8, NAN], n))
    machine = AlertMachine(AlertConfig(open_after=open_after, resolve_after=resolve_after, severity=severity))
    events = run(machine, (ratios * THRESHOLD)[:, None].tolist(), rows.tolist(), cut)
    found = [(e.index, e.state, e.severity, e.row, e.count) for e in events]
    assert found == plain(machine, ratios.tolist(), rows.tolist())


def test_nothing_is_done_where_nothing_is_strange_and_no_alert_is_open() -> None:
    machine = AlertMachine(AlertConfig())
    state = machine.init(10)
    state.setflags(write=False)
    n = 1000
    verdict = judge(np.ones((n, 3)), np.full(3, 6.0))
    rows = np.arange(n, dtype=np.int32) % 10
    assert machine.update(state, rows, np.ones((n, 3)), np.zeros(n), verdict) == []


def test_open_alerts_are_counted() -> None:
    machine = AlertMachine(AlertConfig())
    state = machine.init(5)
    verdict = judge(np.array([[12.0], [12.0], [1.0]]), np.array([THRESHOLD]))
    machine.update(state, np.array([1, 3, 4], np.int32), np.zeros((3, 1)), np.zeros(3), verdict)
    assert machine.open_rows(state) == 2


def test_a_description_names_the_field_its_value_and_why() -> None:
    fired, resolved = run(AlertMachine(AlertConfig(resolve_after=1)), of(46.2, 1))
    why = "6.1 sd above the usual 71.0 ± 3.5"
    assert describe(fired, "temperature", "°C", why) == f"temperature 92.4 °C: {why}"
    assert describe(resolved, "temperature", "", "") == (
        "temperature 2; usual again after 1 anomalous reading in 1 s"
    )
    resolved.value = NAN
    assert describe(resolved, "temperature", "°C", "").startswith("temperature has no value;")


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(anomaly.alerts).failed == 0
