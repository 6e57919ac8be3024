"""Sensors of a group scored together: cuts and crashes change nothing, and alerts name the group."""

from __future__ import annotations

import itertools
import time
from typing import Any

import msgspec
import numpy as np
import pytest

from agents.detect import DetectPartition, StreamDetector
from agents.joining import Joint
from streams import metrics
from streams.codecs import ReadingCodec
from streams.config import DeltaConfig, FieldConfig, JoinConfig, MemberConfig, StreamConfig
from streams.control import ControlState, Silence
from streams.records import Chunk

NOW = time.time()
MEMBERS = {
    "inflow": MemberConfig(sensor="*/flow-in", field="value"),
    "outflow": MemberConfig(sensor="*/flow-out", field="value"),
    "power": MemberConfig(sensor="*/pump", field="value"),
}
STREAM = StreamConfig(
    name="plant",
    topic="sensors.plant",
    fields={"value": FieldConfig(unit="m³/s"), "other": FieldConfig(required=False)},
    detector={"type": "ewz", "warmup": 5},
    sensor_pattern="(?P<site>[^/]+)/",
    join=JoinConfig(members=MEMBERS, max_age_s=5, detector={"type": "graph", "train": 50, "once_in": 1e6}),
)
SENSORS = ("flow-in", "flow-out", "pump", "door")
Key = tuple[int, str]
Row = tuple[float, list[float], list[float]]


def messages(cycles: int, sites: int = 2, fault_from: int = -1, gone: tuple[int, ...] = ()) -> list[bytes]:
    """What goes in at a site goes out, and the pump follows; the door goes its own way.

    Args:
        cycles: one reading of each sensor in each.
        sites: how many.
        fault_from: cycle from which on what goes out at site 0 no longer follows.
        gone: cycles without the pump of site 1.
    """
    chance = np.random.default_rng(3)
    made = []
    for cycle in range(cycles):
        for site in range(sites):
            flow = 10 + 3 * chance.normal()
            out = 10 + 3 * chance.normal() if 0 <= fault_from <= cycle and site == 0 else flow
            for name, value in zip(SENSORS, (flow, out, 2 * flow, 0.0), strict=True):
                if name == "pump" and site == 1 and cycle in gone:
                    continue
                reading = {
                    "sensor_id": f"site-{site}/{name}",
                    "ts": NOW - 5000 + 4 * cycle + chance.uniform(0, 1),
                    "value": value + 0.1 * chance.normal(),
                }
                made.append(msgspec.json.encode(reading))
    return made


def chunk(values: list[bytes], start: int, stop: int) -> Chunk:
    offsets = list(range(start, stop))
    stamps = [int(NOW * 1000)] * len(offsets)
    keys: list[bytes | None] = [b"k"] * len(offsets)
    return Chunk(STREAM.topic, 2, start, stop - 1, offsets, stamps, keys, list(values[start:stop]))


class Run:
    """One partition over its life, and what it has said of groups."""

    def __init__(self, stream: StreamConfig = STREAM, control: ControlState | None = None) -> None:
        self.codec = ReadingCodec(stream)
        self.shared = StreamDetector(stream, control)
        self.changelog: dict[bytes, bytes] = {}
        self.rows: dict[Key, Row] = {}
        self.told: dict[tuple[str, float, str], dict[str, Any]] = {}
        self.alerts: list[dict[str, Any]] = []
        self.predictions: list[bytes | None] = []
        self.start()

    def start(self) -> None:
        self.share = DetectPartition(self.shared, self.changelog)

    def take(self, values: list[bytes], start: int, stop: int) -> None:
        batch = self.codec.decode(chunk(values, start, stop), NOW)
        outcome = self.share.process(batch, NOW)
        self.predictions += outcome.predictions.values
        self.alerts += [msgspec.json.decode(value or b"") for value in outcome.alerts.values]
        for alert in self.alerts:
            if alert["rule"] == "join":
                self.told[alert["id"], alert["ts"], alert["state"]] = alert
        joint = outcome.joint
        if joint is not None and joint.verdict is not None:
            self.note(joint)

    def note(self, joint: Joint) -> None:
        assert joint.verdict is not None
        times, scores = joint.ts.tolist(), joint.verdict.scores.tolist()
        for group, ts, values, score in zip(joint.groups, times, joint.values.tolist(), scores, strict=True):
            key, row = (round(ts * 1e6), group), (ts, values, score)
            np.testing.assert_equal(row, self.rows.setdefault(key, row))


def whole(values: list[bytes], stream: StreamConfig = STREAM) -> Run:
    run = Run(stream)
    run.take(values, 0, len(values))
    return run


def test_any_cut_gives_the_same_rows_scores_and_alerts() -> None:
    values = messages(300, fault_from=250, gone=(100, 101, 102))
    reference, parts = whole(values), Run()
    for start in range(0, len(values), 37):
        parts.take(values, start, min(start + 37, len(values)))
    np.testing.assert_equal(parts.rows, reference.rows)
    assert parts.told == reference.told
    # of four cycles the pump came to the last only: a row without it after two of them, then one with it
    assert len(reference.rows) == 2 * 300 - 2
    assert {state for _, _, state in reference.told} >= {"firing"}


def test_a_crash_at_any_point_of_a_checkpoint_changes_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.state.SHARD_ROWS", 2)  # many shards, so many points
    fields = {"value": FieldConfig(transforms=[DeltaConfig()]), "other": FieldConfig(required=False)}
    stream = msgspec.structs.replace(STREAM, fields=fields)
    values = messages(120, sites=5, fault_from=90, gone=(70,))
    reference = whole(values, stream)
    assert len(reference.rows) > 500
    assert reference.told
    first, second = 1000, 1703  # offsets of two checkpoints, in the middle of cycles
    life = Run(stream)
    life.take(values, 0, first)
    before = dict(life.share.snapshot())
    early, told = dict(life.rows), dict(life.told)
    life.take(values, first, second)
    changes = life.share.snapshot()
    life.take(values, second, second + 55)  # lost with the crash
    kinds = {key.split(b"/")[1] for key, _ in changes}
    assert kinds >= {b"join", b"detect"}
    for written in range(len(changes) + 1):
        run = Run(stream)
        run.changelog = before | dict(changes[:written])
        run.rows, run.told = early | life.rows, told | life.told
        run.start()
        # from an offset that was committed before, in chunks of other sizes
        edges = [first - 41, *range(first + 113, len(values), 200), len(values)]
        for start, stop in itertools.pairwise(edges):
            run.take(values, start, stop)
        np.testing.assert_equal(run.rows, reference.rows, f"after {written} of {len(changes)}")
        assert run.told == reference.told, f"after {written} of {len(changes)}"


def test_no_reading_is_missed_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.state.SHARD_ROWS", 2)
    values = messages(60, sites=3)
    reference = whole(values)
    life = Run()
    life.take(values, 0, 300)
    before = dict(life.share.snapshot())
    life.take(values, 300, 500)
    changes = life.share.snapshot()
    for written in range(len(changes) + 1):
        run = Run()
        run.changelog = before | dict(changes[:written])
        run.start()
        run.take(values, 300, len(values))
        assert run.share.join is not None
        assert reference.share.join is not None
        for name, expected in reference.share.join.state.rows.items():
            np.testing.assert_array_equal(run.share.join.state.rows[name], expected)


def test_groups_that_have_seen_a_reading_are_not_written_again() -> None:
    values = messages(60)
    run = Run()
    run.take(values, 0, 400)
    changes = run.share.snapshot()
    # a crash after the groups' shards, before those of the sensors
    run.changelog = {key: data for key, data in changes if key.startswith(b"rows/join/")}
    assert run.changelog
    run.start()
    run.take(values, 0, 300)
    assert not [key for key, _ in run.share.snapshot() if key.startswith(b"rows/join/")]


def test_the_alert_is_the_groups_and_names_its_members() -> None:
    run = whole(messages(400, fault_from=380))
    (first, *_) = [alert for alert in run.alerts if alert["rule"] == "join"]
    assert (first["source"], first["scope"], first["state"]) == ("site-0", "group", "firing")
    assert first["key"] == "plant/site-0/join"
    assert first["members"] == ["site-0/flow-in", "site-0/flow-out", "site-0/pump"]
    assert (first["field"], first["value"]) == ("", None)
    assert first["explanation"].startswith("site-0: inflow, outflow, power together: outflow is ")
    assert "that go with" in first["explanation"]
    assert not [alert for alert in run.alerts if alert["source"] == "site-1" and alert["rule"] == "join"]


def test_a_detector_of_single_fields_names_the_member() -> None:
    join = msgspec.structs.replace(STREAM.join, detector={"type": "ewz", "warmup": 30, "threshold": 5})
    values = messages(60)
    spike = {"sensor_id": "site-1/flow-out", "ts": NOW - 100, "value": 90.0}
    others = [
        {"sensor_id": f"site-1/{name}", "ts": NOW - 100, "value": value}
        for name, value in (("flow-in", 10), ("pump", 20))
    ]
    values += [msgspec.json.encode(reading) for reading in (spike, *others)]
    run = whole(values, msgspec.structs.replace(STREAM, join=join))
    (alert,) = [alert for alert in run.alerts if alert["rule"] == "join"]
    assert (alert["field"], alert["value"], alert["source"]) == ("outflow", 90.0, "site-1")
    assert alert["explanation"].startswith("site-1: outflow 90 m³/s: ")


def test_a_silence_of_the_site_marks_its_alerts() -> None:
    control = ControlState()
    control.silences["s"] = Silence(until=NOW + 9, site="site-0", rule="join")
    run = Run(control=control)
    values = messages(400, fault_from=380)
    run.take(values, 0, len(values))
    joined = [alert for alert in run.alerts if alert["rule"] == "join"]
    assert joined
    assert all(alert["silenced_by"] == "silence/s" for alert in joined)


def test_sensors_are_scored_as_without_a_join() -> None:
    values = messages(100)
    alone = whole(values, msgspec.structs.replace(STREAM, join=None))
    both = whole(values)

    def said(run: Run) -> list[Any]:
        return [msgspec.json.decode(value or b"")["score"] for value in run.predictions]

    assert said(both) == said(alone)
    assert len(both.predictions) == len(values)
    assert both.share.join is not None
    assert sorted(both.share.join.state.index) == ["site-0", "site-1"]


def test_groups_without_a_member_are_counted() -> None:
    def count() -> float:
        return (
            metrics.REGISTRY.get_sample_value("polarstream_join_incomplete_total", {"stream": "plant"}) or 0
        )

    before = count()
    whole(messages(50, gone=tuple(range(10, 20))))
    assert 3 < count() - before < 10
    before = count()
    whole(messages(50))
    assert count() == before


def test_other_members_drop_the_groups_and_keep_the_sensors() -> None:
    values = messages(20)
    run = whole(values)
    run.changelog = dict(run.share.snapshot())
    assert STREAM.join is not None
    two = dict(list(MEMBERS.items())[:2])
    fewer = msgspec.structs.replace(STREAM, join=msgspec.structs.replace(STREAM.join, members=two))
    changed = Run(fewer)
    changed.changelog = run.changelog
    changed.start()
    assert changed.share.join is not None
    assert (len(changed.share.join.state), changed.share.join.state.dropped) == (0, 1)
    assert (len(changed.share.state), changed.share.state.dropped) == (8, 0)
