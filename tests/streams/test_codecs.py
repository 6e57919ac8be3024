"""The decoder: what it reads, what it refuses and why, and that no message touches another."""

from __future__ import annotations

import doctest
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streams.codecs
from streams.checks import MAX_ID_LENGTH, REASONS
from streams.codecs import ReadingCodec
from streams.config import FieldConfig, StreamConfig
from streams.records import Chunk, ReadingBatch

NOW = 1_737_500_100.0
SENT_MS = 1_737_500_000_250

STREAM = StreamConfig(
    name="plant",
    topic="sensors.plant",
    fields={
        "temperature": FieldConfig(unit="°C", min=-50, max=200),
        "humidity": FieldConfig(required=False, min=0, max=100),
    },
)
GOOD = b'{"sensor_id": "a", "ts": 1737500000.5, "temperature": 20.5, "humidity": 40}'


def chunk(values: list[bytes | None], **columns: Any) -> Chunk:
    n = len(values)
    made: dict[str, Any] = {
        "topic": "sensors.plant",
        "partition": 3,
        "first_offset": 100,
        "last_offset": 99 + n,
        "offsets": list(range(100, 100 + n)),
        "timestamps_ms": [SENT_MS] * n,
        "keys": [b"k%d" % i for i in range(n)],
        "values": values,
    }
    return Chunk(**made | columns)


def decode(*values: bytes | None, stream: StreamConfig = STREAM, **columns: Any) -> ReadingBatch:
    return ReadingCodec(stream).decode(chunk(list(values), **columns), NOW)


def with_field(**changes: object) -> bytes:
    return json.dumps(json.loads(GOOD) | changes).encode()


def reason(value: bytes | None, **kwargs: Any) -> str:
    batch = decode(value, **kwargs)
    assert not len(batch)
    (rejected,) = batch.rejected
    assert rejected.value == value
    assert rejected.reason in REASONS
    return rejected.reason


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(streams.codecs).failed == 0


def test_readings_become_columns_in_log_order() -> None:
    batch = decode(GOOD, with_field(sensor_id="b", temperature=-3, humidity=None), GOOD)
    assert batch.sensor_ids == ["a", "b", "a"]
    assert (batch.stream, batch.topic, batch.partition) == ("plant", "sensors.plant", 3)
    assert (batch.first_offset, batch.last_offset) == (100, 102)
    np.testing.assert_array_equal(batch.offsets, [100, 101, 102])
    np.testing.assert_array_equal(batch.values, [[20.5, 40], [-3, np.nan], [20.5, 40]])
    np.testing.assert_array_equal(batch.ts, [1_737_500_000.5] * 3)
    np.testing.assert_array_equal(batch.published, [SENT_MS / 1000] * 3)
    assert batch.fields == ("temperature", "humidity")
    assert batch.index is None
    assert batch.rejected == []
    assert batch.values.dtype == batch.ts.dtype == np.float64
    distinct, codes = batch.id_codes()
    assert [distinct[code] for code in codes] == batch.sensor_ids


def test_empty_chunk_of_offsets_without_messages() -> None:
    batch = decode(first_offset=7, last_offset=9)
    assert (len(batch), batch.first_offset, batch.last_offset) == (0, 7, 9)
    assert batch.values.shape == (0, 2)


def test_offsets_with_gaps_are_kept() -> None:
    batch = decode(GOOD, b"x", GOOD, offsets=[5, 9, 1000], first_offset=4, last_offset=1001)
    np.testing.assert_array_equal(batch.offsets, [5, 1000])
    assert batch.rejected[0].offset == 9


@pytest.mark.parametrize(
    ("ts", "seconds"),
    [
        (1737500000, 1737500000.0),
        (1737500000123, 1737500000.123),
        ("2025-01-21T22:53:20Z", 1737500000.0),
        ("2025-01-21T23:53:20.500+01:00", 1737500000.5),
        (None, SENT_MS / 1000),
        (0, 0.0),
    ],
)
def test_time_is_read_in_every_form(ts: object, seconds: float) -> None:
    batch = decode(GOOD, with_field(ts=ts))
    np.testing.assert_allclose(batch.ts, [1_737_500_000.5, seconds], rtol=0, atol=1e-6)


def test_kafka_timestamp_counts_without_a_time_field() -> None:
    stream = StreamConfig(name="s", topic="t", time_field="", fields={"temperature": FieldConfig()})
    batch = decode(GOOD, stream=stream)
    np.testing.assert_array_equal(batch.ts, batch.published)


def test_kafka_key_is_the_id_without_an_id_field() -> None:
    stream = StreamConfig(name="s", topic="t", id_field=None, fields={"temperature": FieldConfig()})
    keys = [b"a", None, b"", b"\xff", b"x" * (MAX_ID_LENGTH + 1), "ö".encode()]
    batch = decode(*[GOOD] * 6, stream=stream, keys=keys)
    assert batch.sensor_ids == ["a", "ö"]
    np.testing.assert_array_equal(batch.offsets, [100, 105])
    assert [(r.reason, r.key) for r in batch.rejected] == [
        ("no_sensor_id", None),
        ("no_sensor_id", b""),
        ("no_sensor_id", b"\xff"),
        ("too_long_id", keys[4]),
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "empty_value"),
        (b"", "empty_value"),
        (b" \n", "empty_value"),
        (b"hello", "not_json"),
        (b"[1, 2]", "not_json"),
        (b'"text"', "not_json"),
        (b"null", "not_json"),
        (GOOD + GOOD, "not_json"),
        (GOOD[:-1], "not_json"),
        (b"\xef\xbb\xbf" + GOOD, "not_json"),
        (b'{"sensor_id": "\xff", "temperature": 1}', "not_json"),
        (b'{"x": ' * 100_000, "not_json"),
        (b'{"temperature": 1}', "no_sensor_id"),
        (with_field(sensor_id=None), "no_sensor_id"),
        (with_field(sensor_id=""), "no_sensor_id"),
        (with_field(sensor_id=7), "wrong_type"),
        (with_field(sensor_id="x" * (MAX_ID_LENGTH + 1)), "too_long_id"),
        (b'{"sensor_id": "a"}', "missing_field"),
        (with_field(temperature=None), "missing_field"),
        (with_field(temperature="20"), "wrong_type"),
        (with_field(temperature=True), "wrong_type"),
        (with_field(temperature=[1]), "wrong_type"),
        (with_field(humidity="wet"), "wrong_type"),
        (with_field(temperature=math.nan), "not_finite"),
        (with_field(temperature=-math.inf), "not_finite"),
        (with_field(humidity=math.nan), "not_finite"),
        (with_field(other=math.nan), "not_finite"),
        (b'{"sensor_id": "a", "temperature": 1e999}', "not_finite"),
        (b'{"sensor_id": "a", "temperature": %s}' % (b"9" * 5000), "not_finite"),
        (with_field(temperature=200.5), "out_of_bounds"),
        (with_field(humidity=-1), "out_of_bounds"),
        (with_field(ts="yesterday"), "bad_timestamp"),
        (with_field(ts="2025-01-21T22:53:20"), "bad_timestamp"),
        (with_field(ts=-1), "bad_timestamp"),
        (with_field(ts=True), "bad_timestamp"),
        (with_field(ts=[]), "bad_timestamp"),
        (with_field(ts=math.nan), "bad_timestamp"),
        (with_field(ts=NOW + 301), "future_timestamp"),
        (with_field(ts=NOW * 1e6), "future_timestamp"),
        (with_field(ts="2199-01-01T00:00:00Z"), "future_timestamp"),
    ],
)
def test_bad_message_has_its_own_reason(value: bytes | None, expected: str) -> None:
    assert reason(value) == expected


def test_detail_names_field_value_and_what_to_do() -> None:
    (rejected,) = decode(with_field(temperature=512)).rejected
    assert rejected.detail == (
        "'temperature' is 512.0 °C, above its max 200: check the sensor, or raise fields.temperature.max"
    )


def test_reading_at_the_edge_of_the_skew_is_good() -> None:
    assert len(decode(with_field(ts=NOW + 300))) == 1


@pytest.mark.parametrize("at", [0, 4, 9])
@pytest.mark.parametrize("poison", [b"{", None, with_field(temperature=999), with_field(ts="never")])
def test_poison_leaves_its_neighbours_alone(at: int, poison: bytes | None) -> None:
    values: list[bytes | None] = [with_field(sensor_id=f"s{i}", temperature=i) for i in range(10)]
    values[at] = poison
    headers = [[("h", b"%d" % i)] for i in range(10)]
    batch = decode(*values, headers=headers)
    rest = [i for i in range(10) if i != at]
    assert batch.sensor_ids == [f"s{i}" for i in rest]
    np.testing.assert_array_equal(batch.values[:, 0], rest)
    np.testing.assert_array_equal(batch.offsets, [100 + i for i in rest])
    (rejected,) = batch.rejected
    assert (rejected.offset, rejected.key, rejected.value) == (100 + at, b"k%d" % at, poison)
    assert rejected.headers == headers[at]


def test_two_objects_in_one_message_do_not_shift_the_next() -> None:
    # a joined decode of lines would take the first message for two readings and the second for none
    batch = decode(GOOD + GOOD, b" ", with_field(sensor_id="c"))
    assert batch.sensor_ids == ["c"]
    np.testing.assert_array_equal(batch.offsets, [102])
    assert [r.reason for r in batch.rejected] == ["not_json", "empty_value"]


def test_halves_of_an_object_in_two_messages_make_none() -> None:
    batch = decode(GOOD[:20], GOOD[20:], GOOD)
    np.testing.assert_array_equal(batch.offsets, [102])


numbers = st.one_of(st.floats(), st.integers(), st.floats(-60, 210))
objects = st.fixed_dictionaries(
    {},
    optional={
        "sensor_id": st.one_of(st.text(max_size=4), st.none(), st.integers()),
        "ts": st.one_of(numbers, st.just(1737500000), st.just("2025-01-21T22:53:20Z"), st.text(max_size=5)),
        "temperature": st.one_of(numbers, st.none(), st.booleans(), st.text(max_size=3)),
        "humidity": st.one_of(numbers, st.none()),
        "other": st.recursive(numbers, st.lists),
    },
)
good_values = st.builds(
    lambda t, h: with_field(temperature=t, humidity=h), st.floats(-50, 200), st.floats(0, 100) | st.none()
)
messages = st.one_of(
    st.none(),
    st.binary(max_size=40),
    good_values,
    objects.map(lambda value: json.dumps(value).encode()),
    objects.map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")),
    st.builds(lambda value, at: value[:at], good_values, st.integers(0, 80)),
    st.builds(lambda a, b: a + b, good_values, st.binary(max_size=3)),
    st.builds(
        lambda value, at, byte: value[:at] + bytes([byte]) + value[at:],
        good_values,
        st.integers(0, 80),
        st.integers(0, 255),
    ),
)


@given(st.lists(messages, max_size=12))
def test_any_bytes_decode_as_they_would_alone(values: list[bytes | None]) -> None:
    codec = ReadingCodec(STREAM)
    whole = codec.decode(chunk(values), NOW)
    assert len(whole) + len(whole.rejected) == len(values)
    read = 0
    refused = iter(whole.rejected)
    for i, value in enumerate(values):
        alone = codec.decode(chunk([value], offsets=[100 + i], keys=[b"k%d" % i]), NOW)
        if len(alone):
            assert whole.offsets[read] == 100 + i
            assert whole.sensor_ids[read] == alone.sensor_ids[0]
            assert whole.ts[read] == alone.ts[0]
            np.testing.assert_array_equal(whole.values[read], alone.values[0])
            assert np.isfinite(alone.values[0, 0])
            read += 1
        else:
            rejected = next(refused)
            assert rejected == alone.rejected[0]
            assert (rejected.offset, rejected.key, rejected.value) == (100 + i, b"k%d" % i, value)
            assert rejected.reason in REASONS
            assert rejected.detail
