"""Arrow messages: what is read, what is refused, and that damaged bytes do no harm."""

from __future__ import annotations

import datetime as dt
import json
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.arrow import decode_predictions, encode_readings
from streams.arrow_reader import MAX_DICTIONARIES, MAX_IDS, ArrowReader
from streams.checks import REASONS, ReadingChecks
from streams.codecs import PredictionEncoder, ReadingCodec
from streams.config import FieldConfig, StreamConfig
from streams.errors import BadRecord
from streams.records import ARROW_HEADERS, Chunk, ReadingBatch, is_arrow

NOW = 1_737_500_100.0
SENT_MS = 1_737_500_000_250
STREAM = StreamConfig(
    name="plant",
    topic="sensors.plant",
    fields={"temperature": FieldConfig(min=-50, max=200), "humidity": FieldConfig(required=False)},
)
JSON = b'{"sensor_id": "json", "ts": 1737500000.5, "temperature": 20.5}'


def message(**columns: Any) -> bytes:
    arrays = {
        "sensor_id": ["a", "b", "a"],
        "ts": [1_737_500_000.5, 1_737_500_001.0, 1_737_500_002.0],
        "temperature": [1.0, 2.0, 3.0],
        "humidity": [40.0, None, 60.0],
    } | columns
    return as_stream(pa.table({name: column for name, column in arrays.items() if column is not None}))


def as_stream(table: Any, **kwargs: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, **kwargs)
    return bytes(sink.getvalue().to_pybytes())


def decode(
    *values: bytes | None, stream: StreamConfig = STREAM, codec: ReadingCodec | None = None, **columns: Any
) -> ReadingBatch:
    n = len(values)
    made: dict[str, Any] = {
        "topic": "sensors.plant",
        "partition": 0,
        "first_offset": 10,
        "last_offset": 9 + n,
        "offsets": list(range(10, 10 + n)),
        "timestamps_ms": [SENT_MS + i for i in range(n)],
        "keys": [None] * n,
        "values": list(values),
    }
    return (codec or ReadingCodec(stream)).decode(Chunk(**made | columns), NOW)


def test_one_message_gives_many_readings() -> None:
    batch = decode(message())
    assert batch.sensor_ids == ["a", "b", "a"]
    np.testing.assert_array_equal(batch.offsets, [10, 10, 10])
    np.testing.assert_array_equal(batch.index, [0, 1, 2])
    np.testing.assert_array_equal(batch.ts, [1_737_500_000.5, 1_737_500_001.0, 1_737_500_002.0])
    np.testing.assert_array_equal(batch.published, [SENT_MS / 1000] * 3)
    np.testing.assert_array_equal(batch.values, [[1, 40], [2, np.nan], [3, 60]])
    assert batch.rejected == []
    distinct, codes = batch.id_codes()
    assert sorted(distinct) == ["a", "b"]
    assert codes.dtype == np.int32


def test_json_and_arrow_mix_in_log_order() -> None:
    batch = decode(message(), JSON, b"junk", message(sensor_id=["c", "c", "d"]), JSON)
    assert batch.sensor_ids == ["a", "b", "a", "json", "c", "c", "d", "json"]
    np.testing.assert_array_equal(batch.offsets, [10, 10, 10, 11, 13, 13, 13, 14])
    np.testing.assert_array_equal(batch.index, [0, 1, 2, -1, 0, 1, 2, -1])
    np.testing.assert_array_equal(batch.values[:, 0], [1, 2, 3, 20.5, 1, 2, 3, 20.5])
    np.testing.assert_allclose(batch.published, (SENT_MS + batch.offsets - 10) / 1000)
    assert [r.offset for r in batch.rejected] == [12]
    assert set(batch.id_codes()[0]) == {"a", "b", "c", "d", "json"}


def test_dictionary_holds_the_ids_of_the_batch_alone() -> None:
    codec = ReadingCodec(STREAM)
    decode(message(), codec=codec)
    distinct, codes = decode(message(sensor_id=["z", "z", "b"]), codec=codec).id_codes()
    assert sorted(distinct) == ["b", "z"]
    assert [distinct[code] for code in codes] == ["z", "z", "b"]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array(["a", "b", "a"], pa.large_string()),
        pa.array(["a", "b", "a"], pa.large_string()).dictionary_encode(),
        pa.array(["a", "b", "a"], pa.string_view()),
        pa.DictionaryArray.from_arrays(pa.array([1, 0, 1], pa.uint8()), pa.array(["b", "a", "unused"])),
    ],
    ids=str,
)
def test_ids_come_in_every_string_type(ids: Any) -> None:
    codec = ReadingCodec(STREAM)
    for _ in range(2):  # the second time from the remembered dictionary
        assert decode(message(sensor_id=ids), codec=codec).sensor_ids == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("ts", "seconds"),
    [
        (pa.array([1, 2, 3]), [1, 2, 3]),
        (pa.array([1_737_500_000_123] * 3), [1_737_500_000.123] * 3),
        (pa.array([1_500, None, 0], pa.timestamp("ms", tz="UTC")), [1.5, SENT_MS / 1000, 0]),
        (pa.array([1_500_000] * 3, pa.timestamp("us", tz="Europe/Berlin")), [1.5] * 3),
        (pa.array([1_500_000_000] * 3, pa.timestamp("ns", tz="UTC")), [1.5] * 3),
        (pa.array([None, 5.0, None]), [SENT_MS / 1000, 5, SENT_MS / 1000]),
        (pa.nulls(3), [SENT_MS / 1000] * 3),
        (None, [SENT_MS / 1000] * 3),
    ],
    ids=str,
)
def test_time_comes_in_every_form(ts: Any, seconds: list[float]) -> None:
    np.testing.assert_allclose(decode(message(ts=ts)).ts, seconds, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float16(), pa.float32()], ids=str)
def test_fields_come_in_every_number_type(kind: Any) -> None:
    batch = decode(message(temperature=pa.array([1, 2, 3]).cast(kind), humidity=pa.array([1, None, 3], kind)))
    np.testing.assert_array_equal(batch.values, [[1, 1], [2, np.nan], [3, 3]])


@pytest.mark.parametrize(
    ("columns", "reason", "word"),
    [
        ({"sensor_id": None}, "no_sensor_id", "sensor_id"),
        ({"sensor_id": [1, 2, 3]}, "wrong_type", "int64"),
        ({"temperature": None}, "missing_field", "temperature"),
        ({"temperature": ["x", "y", "z"]}, "wrong_type", "string"),
        ({"temperature": [True, False, True]}, "wrong_type", "bool"),
        ({"ts": [dt.datetime(2025, 1, 1)] * 3}, "bad_timestamp", "time zone"),
        ({"ts": ["x", "y", "z"]}, "bad_timestamp", "string"),
    ],
)
def test_message_that_lacks_a_column_is_refused_whole(
    columns: dict[str, Any], reason: str, word: str
) -> None:
    value = message(**columns)
    batch = decode(JSON, value, JSON)
    assert batch.sensor_ids == ["json", "json"]
    (rejected,) = batch.rejected
    assert (rejected.offset, rejected.reason, rejected.value) == (11, reason, value)
    assert word in rejected.detail


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"sensor_id": ["a", None, "a"]}, "no_sensor_id"),
        ({"sensor_id": pa.array(["a", None, "a"]).dictionary_encode()}, "no_sensor_id"),
        ({"sensor_id": ["a", "", "a"]}, "no_sensor_id"),
        ({"sensor_id": ["a", "x" * 300, "a"]}, "too_long_id"),
        ({"temperature": [1.0, None, 3.0]}, "missing_field"),
        ({"temperature": [1.0, float("nan"), 3.0]}, "not_finite"),
        ({"temperature": [1.0, float("inf"), 3.0]}, "not_finite"),
        ({"humidity": [1.0, float("-inf"), 3.0]}, "not_finite"),
        ({"temperature": [1.0, 500.0, 3.0]}, "out_of_bounds"),
        ({"ts": [1.0, NOW + 301, 3.0]}, "future_timestamp"),
        ({"ts": [1.0, -1.0, 3.0]}, "bad_timestamp"),
        ({"ts": [1.0, float("nan"), 3.0]}, "bad_timestamp"),
    ],
)
def test_bad_row_leaves_its_message_as_a_message_of_its_own(columns: dict[str, Any], reason: str) -> None:
    value = message(**columns)
    batch = decode(value, JSON)
    np.testing.assert_array_equal(batch.index, [0, 2, -1])
    np.testing.assert_array_equal(batch.values[:, 0], [1, 3, 20.5])
    (rejected,) = batch.rejected
    assert (rejected.offset, rejected.reason) == (10, reason)
    assert rejected.detail.startswith("row 1: ")
    sent, cut = (pa.ipc.open_stream(v).read_all() for v in (value, rejected.value))
    assert cut.schema == sent.schema
    assert str(cut.to_pylist()) == str(sent.slice(1, 1).to_pylist())  # as text, where NaN equals NaN
    # a dead letter that is sent again unchanged is refused again, whole
    again = decode(rejected.value)
    assert (len(again), again.rejected[0].value) == (0, rejected.value)


def test_bad_rows_are_sorted_by_reason() -> None:
    value = message(temperature=[500.0, None, 600.0])
    batch = decode(value)
    assert len(batch) == 0
    assert [(r.reason, pa.ipc.open_stream(r.value).read_all().num_rows) for r in batch.rejected] == [
        ("out_of_bounds", 2),
        ("missing_field", 1),
    ]
    assert "and 1 more rows" in batch.rejected[0].detail


def test_message_of_bad_rows_alone_keeps_its_bytes() -> None:
    value = message(temperature=[500.0] * 3)
    assert decode(value).rejected[0].value == value


def test_message_of_several_record_batches_is_one() -> None:
    table = pa.concat_tables(
        [
            pa.table(
                {"sensor_id": pa.array(ids).dictionary_encode(), "temperature": [float(len(ids))] * len(ids)}
            )
            for ids in (["a"], ["b", "c"], ["c", "a", "d"])
        ]
    )
    batch = decode(as_stream(table))
    assert batch.sensor_ids == ["a", "b", "c", "c", "a", "d"]
    np.testing.assert_array_equal(batch.values[:, 0], [1, 2, 2, 3, 3, 3])


def test_message_without_rows_is_refused() -> None:
    assert (
        decode(as_stream(pa.table({"sensor_id": pa.array([], pa.string())}))).rejected[0].reason
        == "empty_value"
    )


def test_damaged_message_is_told_by_its_header() -> None:
    batch = decode(b"damaged", headers=[ARROW_HEADERS])
    assert batch.rejected[0].reason == "bad_arrow"
    assert is_arrow(message())
    assert not is_arrow(JSON, [("content-type", b"application/json")])


def test_kafka_key_is_the_id_of_all_rows() -> None:
    stream = StreamConfig(name="s", topic="t", id_field=None, fields={"temperature": FieldConfig()})
    batch = decode(message(), message(), message(), stream=stream, keys=[b"k", None, b"\xff"])
    assert batch.sensor_ids == ["k"] * 3
    assert [(r.offset, r.reason) for r in batch.rejected] == [(11, "no_sensor_id"), (12, "no_sensor_id")]


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    batch = decode(JSON, b"\xff\xff\xff\xff")
    assert len(batch) == 1
    assert batch.rejected[0].reason == "no_arrow"
    assert "polarstream[arrow]" in batch.rejected[0].detail


def test_memory_of_ids_is_bounded() -> None:
    reader = ArrowReader(STREAM, ReadingChecks(STREAM))
    reader.ids = ["x"] * (MAX_IDS + 1)
    reader.forget_if_full()
    assert reader.ids == []
    for i in range(MAX_DICTIONARIES + 9):
        reader.open(0, message(sensor_id=pa.array([f"s{i}"] * 3).dictionary_encode()), None, 0.0)
    assert len(reader._dictionaries) == MAX_DICTIONARIES


def test_readings_written_are_read_again() -> None:
    value = encode_readings(["a", "b"], np.array([1.0, 2.0]), {"temperature": np.array([3.0, 4.0])})
    batch = decode(value)
    assert batch.sensor_ids == ["a", "b"]
    np.testing.assert_array_equal(batch.values[:, 0], [3, 4])
    np.testing.assert_array_equal(batch.ts, [1, 2])


@pytest.mark.parametrize("rows", [None, np.array([0, 2, 3, 5, 6])])
def test_predictions_are_the_same_in_both_forms(rows: np.ndarray | None) -> None:
    batch = decode(message(), JSON, message(), JSON)
    m = len(batch) if rows is None else len(rows)
    encoder = PredictionEncoder(STREAM, "ewz", "1")
    columns = np.arange(m) / 7, np.arange(m) % 2, np.arange(m) % 3 == 0
    keys, values = encoder.encode_messages(batch, rows, *columns, NOW)
    in_json = [json.loads(v) for v in encoder.encode(batch, rows, *columns, NOW)]
    found: list[dict[str, Any]] = []
    for key, value in zip(keys, values, strict=True):
        if is_arrow(value):
            assert key is None
            found += decode_predictions(value)
        else:
            found.append(json.loads(value))
            assert key == b"json"
    assert found == in_json
    assert len(values) == (4 if rows is None else 3)


def test_single_arrow_message_of_predictions() -> None:
    batch = decode(message())
    value = PredictionEncoder(STREAM, "ewz", "1").encode_arrow(
        batch, None, np.array([1.0, 2, 3]), np.array([0, 1, 0]), np.array([False, True, False]), NOW
    )
    assert [p["id"] for p in decode_predictions(value)] == [f"sensors.plant/0/10.{i}/ewz" for i in range(3)]
    with pytest.raises(BadRecord, match="bad_arrow"):
        decode_predictions(message())
    with pytest.raises(BadRecord, match="bad_arrow"):
        decode_predictions(b"x")


SEEDS = [
    message(),
    message(sensor_id=pa.array(["a", "b", "a"]).dictionary_encode()),
    message(
        sensor_id=pa.array(["a", None, "a"], pa.large_string()),
        ts=pa.array([1, 2, 3], pa.timestamp("ms", "UTC")),
    ),
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0.2, 1),
)
def test_damaged_bytes_do_no_harm(seed: bytes, changes: list[tuple[float, int]], keep: float) -> None:
    damaged = bytearray(seed)
    for where, byte in changes:
        damaged[int(where * len(damaged))] = byte
    value = bytes(damaged[: int(len(damaged) * keep)])
    batch = decode(JSON, value, JSON, headers=[(), ARROW_HEADERS, ()])
    ours = batch.offsets == 11
    assert [s for s, our in zip(batch.sensor_ids, ours, strict=True) if not our] == ["json", "json"]
    np.testing.assert_array_equal(batch.values[~ours, 0], [20.5, 20.5])
    assert np.isfinite(batch.values[:, 0]).all()
    assert (batch.ts >= 0).all()
    for rejected in batch.rejected:
        assert rejected.offset == 11
        assert rejected.reason in REASONS
    assert ours.any() or batch.rejected[0].value is not None
