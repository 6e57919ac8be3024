"""Proposed thresholds, from what a worker's own code recorded and what people labelled."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from agents.detect import DetectPartition, Outcome, StreamDetector
from polarstream.config import Config, parse
from polarstream.control import tell_alerts
from polarstream.proposals import PastAlert, Predictions, Suggestion, past_alerts, suggest
from polarstream.reader import Record
from streams.control import ControlState, Label
from streams.errors import UsageError
from streams.records import ReadingBatch

SENSORS = [f"hall-{i % 2}/{kind}-{i}" for i in range(8) for kind in ("pump", "fan")]
READINGS = 600


def config(**stream: Any) -> Config:
    table = {
        "name": "plant",
        "topic": "plant",
        "fields": {"heat": {}, "flow": {}},
        "detector": {"type": "ewz", "threshold": 5.0},
        "sensor_pattern": "(?P<site>[^/]+)/(?P<type>[a-z]+)",
        "alerts": {"resolve_after": 2},
        **stream,
    }
    return parse({"streams": [table]}, {"HOME": "/home/someone"})


def readings(seed: int = 0) -> np.ndarray[Any, Any]:
    """Noise with jumps, of which those of 40 are real; float64 [readings, sensors, fields]."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (READINGS, len(SENSORS), 2))
    for sensor in range(len(SENSORS)):
        for at in (100, 200, 300, 400, 500):
            values[at + sensor, sensor, 0] += 40 if at == 300 else 9
    return values


def run(config: Config, values: np.ndarray[Any, Any], control: ControlState | None = None) -> Outcome:
    """All of it through the code of a worker; the outputs of all chunks together."""
    share = DetectPartition(StreamDetector(config.streams[0], control), {})
    n = values.shape[1]
    predictions: list[Any] = []
    alerts: list[Any] = []
    for begin in range(0, READINGS, 50):
        count = 50 * n
        ts = 1.7e9 + np.repeat(np.arange(begin, begin + 50), n).astype(float)
        batch = ReadingBatch(
            stream="plant",
            topic="plant",
            partition=0,
            first_offset=begin * n,
            last_offset=begin * n + count - 1,
            offsets=np.arange(begin * n, begin * n + count),
            index=None,
            sensor_ids=None,
            ts=ts,
            published=ts,
            fields=("heat", "flow"),
            values=values[begin : begin + 50].reshape(count, 2),
            ids=(SENSORS, np.tile(np.arange(n, dtype=np.int32), 50)),
        )
        outcome = share.process(batch, float(ts[-1]))
        predictions += outcome.predictions.values
        alerts += outcome.alerts.values
    made = Outcome()
    made.predictions = made.predictions._replace(values=predictions)
    made.alerts = made.alerts._replace(values=alerts)
    return made


def recorded(outcome: Outcome) -> list[Record]:
    return [Record("predictions", 0, i, 0, None, v, ()) for i, v in enumerate(outcome.predictions.values)]


def label(alerts: list[Any], control: ControlState, *, share: float = 1.0) -> None:
    """Say of every alert what it was, through the control topic's own records."""
    for i, story in enumerate(tell_alerts(alerts, control)):
        at = round(story.last.started_at - 1.7e9)
        false = not 300 <= at < 300 + len(SENSORS)
        if i % 10 < 10 * share:
            record = msgspec.json.encode(Label(false_alarm=false, at=0.0))
            control.apply(f"label/{story.last.id}".encode(), record)


def history(config: Config, outcome: Outcome, control: ControlState) -> list[PastAlert]:
    alerts = past_alerts(tell_alerts(outcome.alerts.values, control), config.streams)
    predictions = Predictions(alerts)
    predictions.take(recorded(outcome))
    return alerts


def proposals(config: Config, outcome: Outcome, control: ControlState, **options: Any) -> list[Suggestion]:
    return suggest(config, control, history(config, outcome, control), **options)


def openings(outcome: Outcome) -> set[tuple[str, float]]:
    alerts = [story.last for story in tell_alerts(outcome.alerts.values, ControlState())]
    return {(alert.source, alert.started_at) for alert in alerts}


def test_a_proposal_does_to_past_alerts_what_it_says() -> None:
    made, control, values = config(), ControlState(), readings()
    before = run(made, values)
    label(before.alerts.values, control, share=0.6)
    [found] = [one for one in proposals(made, before, control) if one.where.get("field") == "heat"]
    assert found.rule is not None
    assert found.proposal is not None
    assert (found.rule.stream, found.rule.field, found.rule.sensor) == ("plant", "heat", "*")
    assert 9 < found.rule.threshold < 35
    # the rule as the control topic brings it, and the same readings through the same code again
    control.apply(f"threshold/{found.identity}".encode(), msgspec.json.encode(found.rule))
    after = run(made, values, control)
    heat = [alert for alert in history(made, before, ControlState()) if alert.story.last.field == "heat"]
    assert found.alerts == len(heat)
    left = {(s, t) for s, t in openings(after) if 100 <= t - 1.7e9 < 530}
    assert found.alerts_after == len(SENSORS) == len(left)
    assert left <= openings(before)
    assert found.proposal.expected.precision.value == 1.0
    assert found.proposal.before.precision.value < 0.4
    # nothing is left to be proposed
    assert all(one.rule is None for one in proposals(made, before, control))


@pytest.mark.parametrize("open_after", [1, 3])
def test_the_peak_of_an_alert_is_the_threshold_up_to_which_it_opens(open_after: int) -> None:
    made, values = config(alerts={"open_after": open_after, "resolve_after": 2}), readings(1)
    for at in (250, 450):
        for sensor in range(4):
            values[at : at + 4, sensor, 0] = (30, 300, 3000, 30_000)
    before = run(made, values)
    alerts = history(made, before, ControlState())
    assert alerts
    peaks = np.array([alert.peak(open_after, 0.0) for alert in alerts])
    for threshold in np.quantile(peaks, [0.2, 0.5, 0.9]):
        control = ControlState()
        control.apply(b"threshold/t", msgspec.json.encode({"threshold": float(threshold)}))
        sensors = {alert.story.last.source for alert in alerts if alert.peak(open_after, 0.0) >= threshold}
        assert {source for source, _ in openings(run(made, values, control))} == sensors


def test_groups_are_made_by_type_site_and_sensor() -> None:
    made, control = config(), ControlState()
    outcome = run(made, readings())
    label(outcome.alerts.values, control)
    found = proposals(made, outcome, control, by=("type",))
    assert [one.where for one in found] == [
        {"stream": "plant", "sensor_type": "fan"},
        {"stream": "plant", "sensor_type": "pump"},
    ]
    assert [one.identity for one in found] == ["labels.plant.fan", "labels.plant.pump"]
    sites = proposals(made, outcome, control, by=("site", "field"))
    assert {one.where["site"] for one in sites} == {"hall-0", "hall-1"}
    # one real alert a sensor is too few
    assert all("3 of each are needed" in one.why for one in proposals(made, outcome, control, by=("sensor",)))
    with pytest.raises(UsageError, match="--by 'colour'"):
        proposals(made, outcome, control, by=("colour",))
    with pytest.raises(UsageError, match=r"sensor_pattern with \(\?P<type>"):
        proposals(config(sensor_pattern=None), outcome, control, by=("type",))


def test_what_more_specific_rules_decide_on_is_left_to_them() -> None:
    made, control = config(), ControlState()
    outcome = run(made, readings())
    label(outcome.alerts.values, control)
    control.apply(b"threshold/mine", b'{"sensor": "hall-0/pump-0", "threshold": 7}')
    control.apply(b"threshold/follows", b'{"site": "hall-1", "adaptive": 1000}')
    [found] = [one for one in proposals(made, outcome, control) if one.where.get("field") == "heat"]
    own = [a for a in history(made, outcome, control) if a.story.last.field == "heat"]
    theirs = [
        a for a in own if a.story.last.source.startswith("hall-1") or a.story.last.source == "hall-0/pump-0"
    ]
    assert (found.apart, found.alerts) == (len(theirs), len(own) - len(theirs))


def test_alerts_that_no_score_opened_are_left_out() -> None:
    made = config(thresholds=[{"field": "flow", "high": 2.5}])
    outcome = run(made, readings())
    stories = tell_alerts(outcome.alerts.values, ControlState())
    assert any(story.opened.limit is not None for story in stories)
    assert all(alert.story.opened.limit is None for alert in past_alerts(stories, made.streams))
    other = config(detector={"type": "robust"})
    assert past_alerts(stories, other.streams) == []


def test_a_joint_score_gets_a_rule_without_a_field() -> None:
    made, control = config(detector={"type": "pca", "train": 90, "smooth": 1.0}), ControlState()
    outcome = run(made, readings())
    label(outcome.alerts.values, control)
    [found] = proposals(made, outcome, control)
    assert found.where == {"stream": "plant"}


def test_without_predictions_the_alerts_own_scores_count() -> None:
    made, control = config(), ControlState()
    outcome = run(made, readings())
    label(outcome.alerts.values, control)
    alerts = past_alerts(tell_alerts(outcome.alerts.values, control), made.streams)
    told = np.array([alert.peak(1, 0.0) for alert in alerts])
    known = np.array([alert.peak(1, 0.0) for alert in history(made, outcome, control)])
    assert np.isfinite(told).all()
    assert (told <= known + 1e-6).all()


def test_a_replayed_prediction_counts_once() -> None:
    made = config(alerts={"open_after": 1, "resolve_after": 2})
    outcome = run(made, readings())
    alerts = history(made, outcome, ControlState())
    once = [len(alert.seen) for alert in alerts]
    predictions = Predictions(alerts)
    predictions.take(recorded(outcome))
    predictions.take([Record("predictions", 0, 0, 0, None, value, ()) for value in (None, b"{", b"{}")])
    assert [len(alert.seen) for alert in alerts] == once


def test_nobody_has_labelled_anything() -> None:
    made = config()
    assert proposals(made, run(made, readings()), ControlState()) == []


def test_all_of_a_proposal_goes_into_json() -> None:
    made, control = config(), ControlState()
    outcome = run(made, readings())
    label(outcome.alerts.values, control)
    for one in proposals(made, outcome, control):
        plain = msgspec.json.decode(msgspec.json.encode(one.as_dict()))
        assert plain["id"] == one.identity
        if one.rule is not None:
            assert plain["threshold"] == one.rule.threshold
            assert plain["alerts_after"] <= plain["alerts"]
            assert set(plain["expected"]) == {
                "real", "real_kept", "false", "false_kept", "precision", "recall",
            }  # fmt: skip
