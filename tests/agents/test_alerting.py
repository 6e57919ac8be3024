"""From readings to alert records with rules, budgets, groups, silences: cuts and restarts change nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.alert_records import AlertRecords
from agents.detect import DetectPartition, StreamDetector
from anomaly.notice import Notice
from streams.codecs import ReadingCodec
from streams.config import AlertConfig, FieldConfig, StreamConfig, ThresholdConfig
from streams.control import ControlState
from streams.errors import BadRecord
from streams.records import Chunk

START = 1_700_000_040.0
STREAM = StreamConfig(
    name="plant",
    topic="sensors.plant",
    fields={"t": FieldConfig(unit="°C"), "h": FieldConfig(required=False)},
    detector={"type": "ewz", "warmup": 5, "threshold": 4},
    alerts=AlertConfig(resolve_after=2, group_window_s=60, group_min=2, silent_after=5, silent_min_s=20),
    thresholds=[
        ThresholdConfig(site="east", budget_per_day=6, budget_by="site"),
        ThresholdConfig(sensor="west/*", adaptive=50),
        ThresholdConfig(sensor="east/1", field="t", high=23.0),
        ThresholdConfig(sensor="west/1", severity="info"),
    ],
    sensor_pattern="(?P<site>[^/]+)/",
)
PLAIN = msgspec.structs.replace(STREAM, thresholds=[], alerts=AlertConfig(resolve_after=2))


class Run:
    """One partition over its life."""

    def __init__(self, stream: StreamConfig = STREAM, control: ControlState | None = None) -> None:
        self.control = control or ControlState()
        self.shared = StreamDetector(stream, self.control)
        self.codec = ReadingCodec(stream)
        self.changelog: dict[bytes, bytes] = {}
        self.alerts: list[dict[str, Any]] = []
        self.start()

    def start(self) -> None:
        self.share = DetectPartition(self.shared, self.changelog)

    def take(self, readings: list[tuple[float, bytes]], start: int, stop: int) -> None:
        stop = min(stop, len(readings))
        part = readings[start:stop]
        if not part:
            return
        at = [int(time * 1000) for time, _ in part]
        keys: list[bytes | None] = [None] * len(part)
        values: list[bytes | None] = [value for _, value in part]
        chunk = Chunk(STREAM.topic, 0, start, stop - 1, list(range(start, stop)), at, keys, values)
        outcome = self.share.process(self.codec.decode(chunk, 2e9), at[-1] / 1000)
        self.alerts += [msgspec.json.decode(value or b"") for value in outcome.alerts.values]


def reading(sensor: str, at: float, t: float = 20.0, h: float = 40.0) -> tuple[float, bytes]:
    return at, msgspec.json.encode({"sensor_id": sensor, "ts": at, "t": t, "h": h})


def noise(seed: int, count: int, strange: float = 0.04) -> list[tuple[float, bytes]]:
    rng = np.random.default_rng(seed)
    made, at = [], START
    for _ in range(count):
        at += float(rng.choice([0.5, 1.0, 200.0], p=[0.6, 0.39, 0.01]))
        sensor = f"{rng.choice(['east', 'west'])}/{rng.integers(0, 3)}"
        t = 20 + rng.normal() + (rng.choice([8, 30]) if rng.random() < strange else 0)
        made.append(reading(sensor, at, float(t), float(40 + rng.normal())))
    return made


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(1, 500), st.integers(1, 500), st.integers(0, 60))
def test_any_cut_and_a_crash_give_the_same_alerts(seed: int, cut: int, checkpoint: int, back: int) -> None:
    readings = noise(seed, 500)
    whole, run = Run(), Run()
    whole.take(readings, 0, 500)
    for start in range(0, checkpoint, cut):
        run.take(readings, start, min(start + cut, checkpoint))
    run.changelog |= dict(run.share.snapshot())
    run.take(readings, checkpoint, checkpoint + 50)  # lost
    before = Run()
    before.take(readings, 0, checkpoint)
    run.alerts = before.alerts
    run.start()
    begin = max(checkpoint - back, 0)
    for start in range(begin, 500, cut):
        run.take(readings, start, start + cut)
    assert run.alerts == whole.alerts
    assert {a["rule"] for a in whole.alerts} >= {"ewz"}


def test_the_features_all_occur_in_these_readings() -> None:
    run = Run()
    readings = noise(3, 500, 0.1)
    run.take([*readings, reading("west/0", readings[-1][0] + 50_000)], 0, 501)
    assert {a["rule"] for a in run.alerts} == {"ewz", "group", "budget", "silent"}
    opened = {a["id"] for a in run.alerts if a["rule"] == "ewz" and a["source"].startswith("east/")}
    assert len(opened) <= 6
    assert {a["severity"] for a in run.alerts if a["source"] == "west/1" and a["rule"] == "ewz"} <= {
        "info",
        "critical",
    }


def quiet(sensors: tuple[str, ...], count: int = 30, start: float = START) -> list[tuple[float, bytes]]:
    return [reading(s, start + n, 20 + n % 2) for n in range(count) for s in sensors]


def set_record(control: ControlState, key: str, value: Any) -> None:
    control.apply(key.encode(), None if value is None else msgspec.json.encode(value))


def test_a_rule_of_the_control_topic_holds_from_the_next_chunk_and_until_it_is_taken_back() -> None:
    run = Run(PLAIN)
    readings = quiet(("east/1",), 40)
    run.take(readings, 0, 20)
    set_record(run.control, "threshold/hot", {"sensor": "east/*", "field": "t", "high": 20.5})
    run.take(readings, 20, 30)
    assert [(a["state"], a["limit"]) for a in run.alerts] == [("firing", 20.5)]
    assert run.alerts[0]["explanation"].startswith("t 21 °C: above its limit of 20.5 °C; ")
    set_record(run.control, "threshold/hot", None)
    run.take(readings, 30, 40)
    assert [a["state"] for a in run.alerts] == ["firing", "resolved"]


def test_silences_maintenance_and_acknowledgements_mark_and_change_nothing_else() -> None:
    readings = quiet(("east/1",), 20)
    for n in range(8):
        readings += [reading("east/1", START + 20 + 10 * n, 60)]
        readings += [reading("east/1", START + 21 + 10 * n + i, 20) for i in range(8)]
    bare, run = Run(PLAIN), Run(PLAIN)
    bare.take(readings, 0, len(readings))
    assert len(bare.alerts) > 2
    middle = bare.alerts[2]["ts"]
    set_record(run.control, "silence/s", {"sensor": "east/*", "until": middle})
    set_record(run.control, "silence/other", {"sensor": "west/*", "until": 9e9})
    set_record(run.control, "maintenance/m", {"start": middle, "end": middle + 1, "rule": "ewz"})
    set_record(run.control, f"ack/{bare.alerts[-1]['id']}", {"at": 1.0})
    run.take(readings, 0, len(readings))
    marks = ("silenced", "silenced_by", "acknowledged")
    for plain, marked in zip(bare.alerts, run.alerts, strict=True):
        expected = None
        if plain["ts"] < middle:
            expected = "silence/s"
        elif plain["ts"] < middle + 1:
            expected = "maintenance/m"
        assert (marked["silenced"], marked["silenced_by"]) == (expected is not None, expected)
        assert marked["acknowledged"] == (plain["id"] == bare.alerts[-1]["id"])
        assert {k: v for k, v in plain.items() if k not in marks} == {
            k: v for k, v in marked.items() if k not in marks
        }


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (b"threshold", b"{}", "the key 'threshold'"),
        (b"treshold/a", b"{}", "the key 'treshold/a'"),
        (b"threshold/a", b"not json", "threshold/a: "),
        (b"threshold/a", b'{"hihg": 3}', "hihg"),
        (b"threshold/a", b"{}", "sets nothing"),
        (b"maintenance/a", b'{"start": 2, "end": 1}', "is not before end"),
        (b"silence/a", b'{"until": "noon"}', "until"),
        (None, b"{}", "the key ''"),
    ],
)
def test_a_bad_control_record_leaves_nothing_in_force_under_its_key(
    key: bytes | None, value: bytes, told: str
) -> None:
    state = ControlState()
    state.apply(b"threshold/a", b'{"high": 3}')
    with pytest.raises(BadRecord, match=told) as caught:
        state.apply(key, value)
    assert caught.value.reason == "bad_control"
    assert list(state.thresholds) == ([] if key == b"threshold/a" else ["a"])


def test_a_site_that_falls_silent_is_a_link_and_who_stays_away_gets_an_alert_of_its_own() -> None:
    run = Run()
    run.take(quiet(("east/1", "east/2", "west/1")), 0, 90)
    silence = run.share.alerting.silence
    assert silence is not None
    now = START + 29
    west = [reading("west/1", now + wait) for wait in (1, 60)]
    run.take([*quiet(("east/1", "east/2", "west/1")), *west], 90, 92)
    # counted before west/1 spoke: nobody would be heard, but now it is
    assert silence.silent(silence.clock(now + 60), {"east": "broker", "west": "broker"}) == []
    found = silence.silent(silence.clock(now + 60), {"east": "link"})
    assert [(a.scope, a.source, a.members, a.state) for a in found] == [
        ("link", "east", ["east/1", "east/2"], "firing")
    ]
    assert silence.silent(silence.clock(now + 61), {"east": "link"}) == []
    run.changelog |= dict(run.share.snapshot())
    run.start()
    run.alerts.clear()
    log = [*[reading("x/1", now)] * 92, reading("east/1", now + 70)]
    run.take(log, 92, 93)
    assert [(a["scope"], a["state"], a["id"]) for a in run.alerts] == [("link", "resolved", found[0].id)]
    silence = run.share.alerting.silence
    assert silence is not None
    count, quiet_now, speaking = silence.counts(silence.clock(now + 71))
    assert (count, quiet_now["east"], speaking["east"]) == (1, 1, 1)
    [left] = silence.silent(silence.clock(now + 71), {"east": "sensor"})
    assert (left.scope, left.source) == ("sensor", "east/2")
    assert left.explanation.startswith("silent for ")


def test_nothing_of_it_is_kept_where_nothing_of_it_is_configured() -> None:
    run = Run(PLAIN)
    run.take(noise(1, 100), 0, 100)
    keys = [key for key, _ in run.share.snapshot()]
    assert keys
    assert all(key.startswith(b"rows/detect/") for key in keys)


@pytest.mark.parametrize("cut", [1, 7, 500])
def test_a_budget_alone_tells_what_it_holds_back_however_the_stream_is_cut(cut: int) -> None:
    rules = [ThresholdConfig(site="east", budget_per_day=2, budget_by="site")]
    stream = msgspec.structs.replace(PLAIN, thresholds=rules)
    readings, run, whole = noise(3, 500, strange=0.1), Run(stream), Run(stream)
    whole.take(readings, 0, 500)
    for start in range(0, 500, cut):
        run.take(readings, start, start + cut)
    assert run.alerts == whole.alerts
    assert "budget" in {a["rule"] for a in run.alerts}


def test_a_silence_covers_what_failure_prediction_and_drift_say() -> None:
    run = Run()
    said = {
        "rule": "drift",
        "subject": "t",
        "state": "resolved",
        "severity": "info",
        "explanation": "t runs higher",
    }
    where = {"row": 0, "index": 0, "field": 0, "value": 23.0, "score": 7.0, "threshold": 6.0}
    notice = Notice(**said, **where, started_at=START, ts=START + 60, count=1, serial=0)  # type: ignore[arg-type]
    records = AlertRecords(run.shared.alerting)
    assert not records.of_notice(notice, "east/1").silenced
    set_record(run.control, "maintenance/m", {"start": START, "end": START + 100, "rule": "drift"})
    marked = records.of_notice(notice, "east/1")
    assert (marked.silenced, marked.silenced_by) == (True, "maintenance/m")
    assert (marked.rule, marked.field, marked.source) == ("drift", "t", "east/1")


def test_a_silent_sensor_is_told_between_chunks_and_marked() -> None:
    readings = [reading(f"east/{i}", START + 2 * n) for n in range(40) for i in range(2)]
    for silenced in (False, True):
        run = Run()
        if silenced:
            set_record(run.control, "silence/s", {"site": "east", "until": START + 1e6})
        run.take(readings, 0, len(readings))
        now = readings[-1][0]
        assert run.share.alerting.fallen_silent(now + 1, {}) == []
        told = run.share.alerting.fallen_silent(now + 600, {"east": "link"})
        assert [(a.rule, a.scope, a.silenced) for a in told] == [("silent", "link", silenced)]
    assert Run(PLAIN).share.alerting.fallen_silent(START, {}) == []
