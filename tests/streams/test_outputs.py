"""What leaves: predictions, alerts and dead letters."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.codecs import PredictionEncoder, dead_letter, encode_alert
from streams.config import FieldConfig, StreamConfig
from streams.records import Alert, ReadingBatch, Rejected

STREAM = StreamConfig(name="plänt", topic="t", fields={"temperature": FieldConfig(), 'a"b': FieldConfig()})


def batch_of(ids: list[str], index: list[int] | None = None) -> ReadingBatch:
    n = len(ids)
    return ReadingBatch(
        stream=STREAM.name,
        topic="sensors.plant",
        partition=2,
        first_offset=10,
        last_offset=10 + n,
        offsets=np.arange(10, 10 + n),
        index=None if index is None else np.array(index, np.int32),
        sensor_ids=ids,
        ts=np.arange(n) + 0.25,
        published=np.arange(n) + 0.5,
        fields=STREAM.field_names,
        values=np.zeros((n, 2)),
        rejected=[],
    )


def encode(
    batch: ReadingBatch, rows: np.ndarray | slice | None, score: list[float]
) -> list[dict[str, object]]:
    m = len(score)
    encoder = PredictionEncoder(STREAM, "ewz", "1")
    made = encoder.encode(
        batch, rows, np.array(score), np.arange(m) % 2, np.array([s > 6 for s in score], np.bool_), now=100.0
    )
    return [json.loads(value) for value in made]


def test_prediction_has_the_keys_of_the_contract() -> None:
    assert encode(batch_of(["a", "b"]), None, [7.5, 0.125])[0] == {
        "id": "sensors.plant/2/10/ewz",
        "source": "a",
        "stream": "plänt",
        "ts": 0.25,
        "model": "ewz",
        "version": "1",
        "score": 7.5,
        "field": "temperature",
        "is_anomaly": True,
        "latency_ms": 99_500.0,
    }


@pytest.mark.parametrize("rows", [np.array([1, 3]), slice(1, 3), np.array([], np.int64)])
def test_rows_pick_readings(rows: np.ndarray | slice) -> None:
    batch = batch_of(["a", "b", "c", "d"])
    picked = np.arange(4)[rows]
    made = encode(batch, rows, [0.0] * len(picked))
    assert [p["source"] for p in made] == [batch.sensor_ids[i] for i in picked]
    assert [p["id"] for p in made] == [f"sensors.plant/2/{10 + i}/ewz" for i in picked]


def test_reading_of_an_arrow_message_has_its_row_in_the_id() -> None:
    made = encode(batch_of(["a", "b"], index=[-1, 4]), None, [0, 0])
    assert [p["id"] for p in made] == ["sensors.plant/2/10/ewz", "sensors.plant/2/11.4/ewz"]


def test_score_of_nothing_is_null() -> None:
    assert encode(batch_of(["a"]), None, [float("nan")])[0]["score"] is None


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_any_sensor_id_makes_one_message_each(ids: list[str]) -> None:
    made = encode(batch_of(ids), None, [1.0] * len(ids))
    assert [p["source"] for p in made] == ids


def test_dead_letter_keeps_the_original_and_tells_its_origin() -> None:
    rejected = Rejected(
        offset=7,
        timestamp_ms=1234,
        key=b"\xff",
        value=None,
        headers=[("ps-seq", b"p:1"), ("ps-error", b"old"), ("x", b"\x00")],
        reason="empty_value",
        detail="käse",
    )
    assert dead_letter(rejected, "sensors.plant", 3) == (
        b"\xff",
        None,
        [
            ("ps-seq", b"p:1"),
            ("x", b"\x00"),
            ("ps-error", b"empty_value"),
            ("ps-detail", "käse".encode()),
            ("ps-topic", b"sensors.plant"),
            ("ps-partition", b"3"),
            ("ps-offset", b"7"),
            ("ps-timestamp", b"1234"),
        ],
    )


def test_dead_letter_takes_a_detail_that_is_no_utf8() -> None:
    rejected = Rejected(0, 0, None, b"", (), "not_json", "\ud800")
    assert dict(dead_letter(rejected, "t", 0)[2])["ps-detail"] == b"\\ud800"


def test_alert_has_the_keys_of_the_design() -> None:
    alert = Alert(
        id="i", key="plant/a", rule="ewz", severity="warning", state="firing", source="a",
        field="temperature", value=None, score=7.0, threshold=6.0, started_at=1.0, ts=2.0, count=1,
        explanation="why",
    )  # fmt: skip
    assert list(json.loads(encode_alert(alert))) == [
        "id", "key", "rule", "severity", "state", "source", "field", "value", "score", "threshold",
        "started_at", "ts", "count", "explanation", "scope", "limit", "group_id", "members", "suppressed",
        "silenced", "silenced_by", "acknowledged",
    ]  # fmt: skip
