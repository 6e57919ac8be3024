"""Camera frames: pictures as Kafka messages.

The value is a JPEG, PNG or WebP file, or raw pixels; the key is the camera's id; headers say the rest:
`content-type` (without one the first bytes tell), `ts` (when the picture was taken: epoch seconds or
milliseconds, or RFC 3339; without it Kafka's timestamp counts) and for raw pixels `shape`, `480,640,3`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

import numpy as np

from streams.checks import moment_seconds, scale_times
from streams.errors import BadRecord
from streams.records import Chunk, Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.config import FrameStreamConfig

JPEG: Final = "image/jpeg"
PNG: Final = "image/png"
WEBP: Final = "image/webp"
#: uint8 pixels, rows from the top, [h, w, 3] in RGB, [h, w, 1] or [h, w] grey.
RAW: Final = "application/x-raw-uint8"

#: Every reason a frame can be refused for that readings don't have, with its meaning.
FRAME_REASONS: Final = {
    "no_camera_id": "the Kafka key of a frame is no text of 1 to 256 characters",
    "unknown_image_type": "the value is no JPEG, PNG or WebP, and the content type is none of ours",
    "bad_shape": "the `shape` of raw pixels is none, or does not fit the number of bytes",
    "bad_image": "the picture can't be decoded, or is cut off",
    "image_too_large": "it has more pixels than the stream's `max_pixels`",
    "inference_failed": "no device could run the frame",
}

CONTENT_TYPES: Final = (JPEG, PNG, WEBP, RAW)
MAX_ID_LENGTH: Final = 256

Headers = list[tuple[str, bytes]]


@dataclass(slots=True)
class Frame:
    """One picture, not decoded.

    Attributes:
        source: the camera's id.
        ts: when it was taken, seconds since the epoch.
        published: Kafka's timestamp, seconds since the epoch.
        offset: of its message.
        content_type: one of CONTENT_TYPES.
        data: of the picture.
        shape: of raw pixels, (h, w, 1) or (h, w, 3).
    """

    source: str
    ts: float
    published: float
    offset: int
    content_type: str
    data: bytes
    shape: tuple[int, int, int] | None = None


@dataclass(slots=True)
class FrameBatch:
    """The frames of one chunk, in log order; offsets as in `ReadingBatch`."""

    stream: str
    topic: str
    partition: int
    first_offset: int
    last_offset: int
    frames: list[Frame] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frames)


def frame_headers(content_type: str, ts: float | None = None, shape: Sequence[int] = ()) -> Headers:
    """Headers for a publisher of frames.

    Args:
        content_type: one of CONTENT_TYPES.
        ts: when the picture was taken, seconds since the epoch.
        shape: of raw pixels.
    """
    headers: Headers = [("content-type", content_type.encode())]
    if ts is not None:
        headers.append(("ts", f"{ts:.6f}".encode()))
    if shape:
        headers.append(("shape", ",".join(map(str, shape)).encode()))
    return headers


def content_type_of(data: bytes) -> str | None:
    """Tell the type of a picture by its first bytes; None: none of ours."""
    if data[:3] == b"\xff\xd8\xff":
        return JPEG
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return PNG
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP
    return None


def read_frames(chunk: Chunk, stream: FrameStreamConfig, now: float) -> FrameBatch:
    """Read a chunk's messages as frames; never raises for what is in it.

    Args:
        chunk: raw messages.
        stream: what they belong to.
        now: seconds since the epoch, for `max_clock_skew_s`.
    """
    batch = FrameBatch(stream.name, chunk.topic, chunk.partition, chunk.first_offset, chunk.last_offset)
    for i, value in enumerate(chunk.values):
        headers = chunk.headers[i] if chunk.headers else ()
        try:
            batch.frames.append(
                _frame(
                    chunk.keys[i],
                    value,
                    dict(headers),
                    chunk.offsets[i],
                    chunk.timestamps_ms[i] / 1000,
                    now + stream.max_clock_skew_s,
                )
            )
        except BadRecord as error:
            batch.rejected.append(rejected_message(chunk, i, error))
    return batch


def rejected_message(chunk: Chunk, i: int, error: BadRecord) -> Rejected:
    """Refuse message i of a chunk."""
    return Rejected(
        offset=chunk.offsets[i],
        timestamp_ms=chunk.timestamps_ms[i],
        key=chunk.keys[i],
        value=chunk.values[i],
        headers=chunk.headers[i] if chunk.headers else (),
        reason=error.reason,
        detail=error.detail,
    )


def picture_type(value: bytes, headers: dict[str, bytes]) -> tuple[str, tuple[int, int, int] | None]:
    """Tell the content type of a picture, and of raw pixels their shape.

    Args:
        value: its bytes.
        headers: `content-type`, which may be missing, and `shape`.

    Raises:
        BadRecord: it is no picture.
    """
    kind = _content_type(value, headers)
    return kind, _shape(value, headers) if kind == RAW else None


def _frame(
    key: bytes | None,
    value: bytes | None,
    headers: dict[str, bytes],
    offset: int,
    published: float,
    latest: float,
) -> Frame:
    source = _source(key)
    if not value:
        raise BadRecord("empty_value", "the message has no value: send the picture's bytes")
    kind, shape = picture_type(value, headers)
    ts = _time(headers.get("ts"), published)
    if ts > latest:
        raise BadRecord(
            "future_timestamp",
            f"ts {ts:.3f} is in the future: set the camera's clock, or raise max_clock_skew_s",
        )
    return Frame(source, ts, published, offset, kind, value, shape)


def _source(key: bytes | None) -> str:
    try:
        source = "" if key is None else key.decode()
    except UnicodeDecodeError:
        source = ""
    if not 0 < len(source) <= MAX_ID_LENGTH:
        raise BadRecord(
            "no_camera_id",
            f"the Kafka key {(key or b'')[:60]!r} is no camera id: "
            f"send 1 to {MAX_ID_LENGTH} characters of UTF-8",
        )
    return source


def _content_type(value: bytes, headers: dict[str, bytes]) -> str:
    told = headers.get("content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    seen = content_type_of(value)
    if told in ("", "application/octet-stream"):
        if seen is None:
            raise BadRecord(
                "unknown_image_type",
                f"{value[:8]!r}... is no JPEG, PNG or WebP: send one, or raw pixels with content-type {RAW}",
            )
        return seen
    if told not in CONTENT_TYPES:
        raise BadRecord(
            "unknown_image_type", f"content-type {told!r} is unknown: send {', '.join(CONTENT_TYPES)}"
        )
    # what a picture is decides, not what it is called
    return told if told == RAW or seen is None else seen


def _shape(value: bytes, headers: dict[str, bytes]) -> tuple[int, int, int]:
    text = headers.get("shape", b"").decode("latin-1")
    try:
        sides = tuple(int(part) for part in text.split(","))
    except ValueError:
        sides = ()
    if len(sides) == 2:
        sides = (*sides, 1)
    if len(sides) != 3 or min(sides) < 1 or sides[2] not in (1, 3):
        raise BadRecord(
            "bad_shape", f"the header shape is {text!r}: send height,width,channels as in 480,640,3"
        )
    if math.prod(sides) != len(value):
        raise BadRecord(
            "bad_shape",
            f"shape {text} stands for {math.prod(sides)} bytes but not {len(value)}: send one a channel",
        )
    return sides[0], sides[1], sides[2]


def _time(raw: bytes | None, published: float) -> float:
    if raw is None:
        return published
    text = raw.decode("latin-1").strip()
    try:
        ts = float(text)
    except ValueError:
        try:
            ts = moment_seconds(datetime.fromisoformat(text))
        except ValueError:
            ts = math.nan
    ts = float(scale_times(np.array([ts]))[0])
    if not math.isfinite(ts) or ts < 0:
        raise BadRecord(
            "bad_timestamp",
            f"the header ts is {text[:60]!r}: "
            "send seconds or milliseconds since 1970, or RFC 3339 with an offset",
        )
    return ts
