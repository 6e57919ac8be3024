"""Requests and results as messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpu_inference.models.manifest import Raw
from gpu_inference.tasks.raw import RawTask
from streams.config import RequestsConfig
from streams.errors import BadRecord
from streams.frames import RAW
from streams.records import Chunk
from streams.requests import (
    READINGS,
    TENSOR,
    Cancellation,
    Failure,
    InferenceRequest,
    InferenceResult,
    Payload,
    RefusedRequest,
    decode_result,
    encode_result,
    read_requests,
    request_headers,
)

CONFIG = RequestsConfig(enabled=True, max_timeout_s=60)
JPEG = b"\xff\xd8\xff and so on"


def read(key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> Any:
    chunk = Chunk("inference.requests", 2, 7, 7, [7], [1_000_000], [key], [value], [headers])
    batch = read_requests(chunk, CONFIG)
    assert (batch.stream, batch.partition, batch.first_offset, batch.last_offset) == ("requests", 2, 7, 7)
    (entry,) = batch.entries
    assert entry.offset == 7
    return entry


@pytest.mark.parametrize(
    "payload",
    [
        Payload("image/jpeg", JPEG),
        Payload(RAW, bytes(24), (2, 4, 3)),
        Payload(TENSOR, np.arange(6, dtype="<f4").tobytes(), (2, 3), "float32"),
        Payload(TENSOR, bytes(8), (), "int64"),
        Payload(READINGS, b"[[1.0, 2.0]]"),
    ],
)
def test_a_request_reads_as_it_was_sent(payload: Payload) -> None:
    sent = request_headers("animals@2", payload, 1010.5, 5)
    expected = InferenceRequest("id-1", "animals@2", payload, 1010.5, 5, 1000.0, 7)
    assert read(b"id-1", payload.data, sent) == expected


def test_what_is_left_out_has_a_default_and_no_deadline_is_beyond_the_longest() -> None:
    plain = read(b"x", JPEG, [("model", b"m")])
    assert (plain.reply, plain.deadline, plain.input.content_type) == (2, 1060.0, "image/jpeg")
    assert read(b"x", JPEG, [("model", b"m"), ("deadline", b"99999999")]).deadline == 1060.0


def test_a_message_without_a_value_cancels() -> None:
    assert read(b"id-1", None, []) == Cancellation("id-1", 7)


@pytest.mark.parametrize(
    ("reason", "key", "value", "headers"),
    [
        ("no_request_id", None, JPEG, {}),
        ("no_request_id", b"\xff", JPEG, {}),
        ("no_request_id", b"x" * 129, JPEG, {}),
        ("no_request_id", None, None, {}),
        ("empty_value", b"id", b"", {}),
        ("no_model", b"id", JPEG, {"model": b" "}),
        ("bad_deadline", b"id", JPEG, {"deadline": b"soon"}),
        ("bad_deadline", b"id", JPEG, {"deadline": b"nan"}),
        ("bad_reply_partition", b"id", JPEG, {"reply-partition": b"-1"}),
        ("unknown_content_type", b"id", JPEG, {"content-type": b"text/html"}),
        ("unknown_image_type", b"id", b"no picture", {}),
        ("bad_shape", b"id", b"1234", {"content-type": RAW.encode(), "shape": b"9,9,3"}),
        ("bad_tensor", b"id", bytes(12), {"content-type": TENSOR.encode(), "shape": b"3"}),
        (
            "bad_tensor",
            b"id",
            bytes(12),
            {"content-type": TENSOR.encode(), "dtype": b"float32", "shape": b"4"},
        ),
        (
            "bad_tensor",
            b"id",
            bytes(12),
            {"content-type": TENSOR.encode(), "dtype": b"float32", "shape": b"a"},
        ),
        ("bad_tensor", b"id", b"x", {"content-type": TENSOR.encode(), "dtype": b"object", "shape": b"1"}),
    ],
)
def test_what_is_no_request_is_refused_and_its_sender_can_be_told(
    reason: str, key: bytes | None, value: bytes | None, headers: dict[str, bytes]
) -> None:
    refused = read(key, value, list(({"model": b"m"} | headers).items()))
    assert isinstance(refused, RefusedRequest)
    assert (refused.message.reason, refused.message.key, refused.message.value) == (reason, key, value)
    assert refused.id == (None if reason == "no_request_id" else "id")
    assert refused.reply == 2


def test_a_result_comes_back_as_it_was_and_anything_else_is_none() -> None:
    ok = InferenceResult("id", "ok", {"label": "cat"}, None, "animals", "2", "ab", "cpu", 3, 1.5, 4.25)
    bad = InferenceResult("id", "error", error=Failure("unknown_model", "promote it"))
    for result in (ok, bad):
        assert decode_result(encode_result(result)) == result
    for value in (b"", b"[]", b'{"id": "x"}', b'{"id": "x", "status": "maybe"}'):
        with pytest.raises(BadRecord):
            decode_result(value)


def test_raw_outputs_are_arrays_again() -> None:
    y = np.random.default_rng(0).normal(size=(1, 2, 3)).astype(np.float16)
    (answer,) = RawTask(Raw()).answers({"y": y}, 1)
    result = decode_result(encode_result(InferenceResult("id", "ok", answer)))
    (back,) = result.arrays().values()
    assert back.dtype == np.float16
    np.testing.assert_array_equal(back, y[0])
    assert InferenceResult("id", "ok", {"label": "cat"}).arrays() == {}
