"""Messages read as camera frames."""

from __future__ import annotations

from typing import Any

import pytest

from streams.config import FrameStreamConfig
from streams.frames import JPEG, PNG, RAW, WEBP, content_type_of, frame_headers, read_frames
from streams.records import Chunk

STREAM = FrameStreamConfig(name="gate", topic="frames.gate", model="animals")
NOW = 1_700_000_000.0
JPG = b"\xff\xd8\xff\xe0 the rest"


def chunk(*messages: tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]) -> Chunk:
    keys, values, headers = (list(column) for column in zip(*messages, strict=True))
    n = len(messages)
    return Chunk(
        "frames.gate", 1, 100, 99 + n, range(100, 100 + n), [int(NOW * 1000)] * n, keys, values, headers
    )


def read(key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> Any:
    return read_frames(chunk((key, value, headers)), STREAM, NOW)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (JPG, JPEG),
        (b"\x89PNG\r\n\x1a\n....", PNG),
        (b"RIFF\0\0\0\0WEBPVP8 ", WEBP),
        (b"GIF89a", None),
        (b"", None),
    ],
)
def test_first_bytes_tell_the_type(data: bytes, kind: str | None) -> None:
    assert content_type_of(data) == kind


def test_what_a_publisher_writes_is_read_again() -> None:
    batch = read(b"cam", bytes(24), frame_headers(RAW, 1699999999.25, (2, 4, 3)))
    (frame,) = batch.frames
    assert (frame.source, frame.ts, frame.shape, frame.offset) == ("cam", 1699999999.25, (2, 4, 3), 100)
    assert (batch.first_offset, batch.last_offset, batch.rejected) == (100, 100, [])


def test_the_picture_itself_decides_over_a_wrong_content_type() -> None:
    assert read(b"cam", JPG, frame_headers(PNG)).frames[0].content_type == JPEG
    assert read(b"cam", JPG, [("content-type", b"application/octet-stream")]).frames[0].content_type == JPEG
    assert read(b"cam", JPG, [("content-type", b"IMAGE/JPEG; q=1")]).frames[0].content_type == JPEG


@pytest.mark.parametrize(
    ("ts", "seconds"),
    [(b"1600000000", 1.6e9), (b"1600000000500", 1600000000.5), (b"2020-09-13T12:26:40+00:00", 1.6e9)],
)
def test_time_stamps_of_all_kinds(ts: bytes, seconds: float) -> None:
    assert read(b"cam", JPG, [("ts", ts)]).frames[0].ts == seconds


def test_without_a_time_kafkas_counts() -> None:
    assert read(b"cam", JPG, []).frames[0].ts == NOW


@pytest.mark.parametrize(
    ("key", "value", "headers", "reason"),
    [
        (None, JPG, [], "no_camera_id"),
        (b"", JPG, [], "no_camera_id"),
        (b"\xff", JPG, [], "no_camera_id"),
        (b"c" * 257, JPG, [], "no_camera_id"),
        (b"cam", None, [], "empty_value"),
        (b"cam", b"", [], "empty_value"),
        (b"cam", b"GIF89a", [], "unknown_image_type"),
        (b"cam", JPG, [("content-type", b"video/mp4")], "unknown_image_type"),
        (b"cam", bytes(24), frame_headers(RAW), "bad_shape"),
        (b"cam", bytes(24), frame_headers(RAW, shape=(2, 4)), "bad_shape"),
        (b"cam", bytes(24), frame_headers(RAW, shape=(2, 3, 4)), "bad_shape"),
        (b"cam", bytes(24), [*frame_headers(RAW), ("shape", b"2,-4,-3")], "bad_shape"),
        (b"cam", JPG, [("ts", b"yesterday")], "bad_timestamp"),
        (b"cam", JPG, [("ts", b"2020-09-13T12:26:40")], "bad_timestamp"),
        (b"cam", JPG, [("ts", b"nan")], "bad_timestamp"),
        (b"cam", JPG, [("ts", b"-5")], "bad_timestamp"),
        (b"cam", JPG, [("ts", b"1700000301")], "future_timestamp"),
    ],
)
def test_what_is_no_frame_is_refused_with_its_reason_and_bytes(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]], reason: str
) -> None:
    batch = read_frames(chunk((b"good", JPG, []), (key, value, headers), (b"good", JPG, [])), STREAM, NOW)
    assert [frame.offset for frame in batch.frames] == [100, 102]
    (refused,) = batch.rejected
    assert (refused.offset, refused.key, refused.value, refused.reason) == (101, key, value, reason)
    assert ":" in refused.detail
