"""Requests and results: a model asked for one answer, by a message, and answered by one.

A request's key is its id; its value is the input: a picture as a frame has it (`streams.frames`), a tensor
(little-endian numbers in C order, headers `dtype` and `shape`), or JSON, a list of readings, oldest first.
Headers say the rest: `model`, `content-type`, `deadline` (seconds since 1970), `reply-partition` (of the
topic of results; without it that of the request). A message without a value, with the key of a request,
cancels it.
"""

from __future__ import annotations

import base64
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec
import numpy as np

from streams.errors import BadRecord
from streams.frames import CONTENT_TYPES, picture_type, rejected_message

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streams.config import RequestsConfig
    from streams.records import Chunk, Rejected

TENSOR: Final = "application/x-tensor"
READINGS: Final = "application/json"
Headers = list[tuple[str, bytes]]
Status: TypeAlias = Literal["ok", "error", "expired", "cancelled"]

#: Every reason a request can be refused for beside those of frames, with its meaning.
REQUEST_REASONS: Final = {
    "no_request_id": "the Kafka key of a request is no text of 1 to 128 characters",
    "no_model": "a request has no header `model`",
    "unknown_model": "a request names a model that is not live",
    "bad_deadline": "the `deadline` of a request is no time in seconds",
    "bad_reply_partition": "the `reply-partition` of a request is none of the topic of results",
    "unknown_content_type": "the content type of a request is none of ours",
    "bad_tensor": "the tensor of a request is not what its headers say, or not what the model takes",
    "bad_window": "the readings of a request are no window of the model",
    "wrong_input": "the model of a request (or a frame) takes another kind of input",
}

MAX_ID_LENGTH: Final = 128
DTYPES: Final = ("float32", "float16", "float64", "int8", "uint8", "int32", "int64")
_SHAPE: Final = re.compile(r"\d{1,9}(,\d{1,9}){0,15}|")


class Failure(msgspec.Struct, frozen=True):
    """Why there is no answer: a word of the dead letters' reasons, and what to do."""

    reason: str
    detail: str


class InferenceResult(msgspec.Struct, frozen=True):
    """What became of a request.

    Attributes:
        id: of the request.
        status: ok, error (see `error`), expired (no answer before the deadline) or cancelled.
        answer: of the model's task; None where there is none.
        error: why there is none.
        model: that answered.
        version: of it.
        sha256: of its file.
        device: that ran it.
        batch: inputs that it ran with.
        compute_ms: that the device took over the batch.
        latency_ms: from the request's Kafka timestamp to this, both by their own clocks.
    """

    id: str
    status: Status
    answer: dict[str, Any] | None = None
    error: Failure | None = None
    model: str = ""
    version: str = ""
    sha256: str = ""
    device: str = ""
    batch: int = 0
    compute_ms: float = 0.0
    latency_ms: float = 0.0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The outputs by name, for a model whose task is `raw`; else nothing."""
        packed = (self.answer or {}).get("outputs", {})
        return {
            name: np.frombuffer(
                base64.b64decode(one["data"]), np.dtype(one["dtype"]).newbyteorder("<")
            ).reshape(one["shape"])
            for name, one in packed.items()
        }


_encode_result = msgspec.json.Encoder().encode
_decode_result = msgspec.json.Decoder(InferenceResult).decode


def encode_result(result: InferenceResult) -> bytes:
    """The value of a result's message; its key is the request's id."""
    return _encode_result(result)


def decode_result(value: bytes) -> InferenceResult:
    """Read the value of a result's message.

    Raises:
        BadRecord: it is none.
    """
    try:
        return _decode_result(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRecord("bad_result", f"no result ({error}): only workers write this topic") from error


@dataclass(slots=True)
class Payload:
    """An input as it is sent.

    Attributes:
        content_type: of a picture, TENSOR or READINGS.
        data: the bytes.
        shape: of raw pixels and tensors.
        dtype: of tensors.
    """

    content_type: str
    data: bytes
    shape: tuple[int, ...] | None = None
    dtype: str = ""


@dataclass(slots=True)
class InferenceRequest:
    """One request.

    Attributes:
        id: its key.
        model: `name` of a model or an alias, or `name@version`.
        input: what the model looks at.
        deadline: when an answer is of no use any more, seconds since the epoch.
        reply: partition of the topic of results.
        published: Kafka's timestamp, seconds since the epoch.
        offset: of its message.
    """

    id: str
    model: str
    input: Payload
    deadline: float
    reply: int
    published: float
    offset: int


@dataclass(slots=True)
class Cancellation:
    """The request of this id is of no use any more."""

    id: str
    offset: int


@dataclass(slots=True)
class RefusedRequest:
    """A message that is no request, and where the sender may be told, if it gave an id."""

    message: Rejected
    id: str | None
    reply: int

    @property
    def offset(self) -> int:
        """Of its message."""
        return self.message.offset


@dataclass(slots=True)
class RequestBatch:
    """The requests of one chunk, in log order; offsets as in `ReadingBatch`."""

    stream: str
    topic: str
    partition: int
    first_offset: int
    last_offset: int
    entries: list[InferenceRequest | Cancellation | RefusedRequest] = field(default_factory=list)


def request_headers(model: str, payload: Payload, deadline: float, reply: int | None = None) -> Headers:
    """Headers of a request's message.

    Args:
        model: `name` of a model or an alias, or `name@version`.
        payload: its input.
        deadline: seconds since the epoch.
        reply: partition of the topic of results.
    """
    headers: Headers = [
        ("model", model.encode()),
        ("content-type", payload.content_type.encode()),
        ("deadline", f"{deadline:.3f}".encode()),
    ]
    if reply is not None:
        headers.append(("reply-partition", str(reply).encode()))
    if payload.shape is not None:
        headers.append(("shape", ",".join(map(str, payload.shape)).encode()))
    if payload.dtype:
        headers.append(("dtype", payload.dtype.encode()))
    return headers


def read_requests(chunk: Chunk, config: RequestsConfig) -> RequestBatch:
    """Read a chunk's messages as requests; never raises for what is in it."""
    batch = RequestBatch(config.name, chunk.topic, chunk.partition, chunk.first_offset, chunk.last_offset)
    for i, value in enumerate(chunk.values):
        headers = dict(chunk.headers[i]) if chunk.headers else {}
        identity, reply, offset = None, chunk.partition, chunk.offsets[i]
        try:
            identity = _identity(chunk.keys[i])
            if value is None:
                batch.entries.append(Cancellation(identity, offset))
                continue
            reply = _reply(headers.get("reply-partition"), reply)
            published = chunk.timestamps_ms[i] / 1000
            batch.entries.append(
                InferenceRequest(
                    identity,
                    _model(headers.get("model", b"")),
                    _payload(value, headers),
                    _deadline(headers.get("deadline"), published, config.max_timeout_s),
                    reply,
                    published,
                    offset,
                )
            )
        except BadRecord as error:
            batch.entries.append(RefusedRequest(rejected_message(chunk, i, error), identity, reply))
    return batch


def _identity(key: bytes | None) -> str:
    try:
        identity = (key or b"").decode()
    except UnicodeDecodeError:
        identity = ""
    if not 0 < len(identity) <= MAX_ID_LENGTH:
        raise BadRecord(
            "no_request_id",
            f"the Kafka key {(key or b'')[:60]!r} is no id: send 1 to {MAX_ID_LENGTH} characters of UTF-8",
        )
    return identity


def _model(raw: bytes) -> str:
    model = raw.decode("utf-8", "replace").strip()
    if not model:
        raise BadRecord("no_model", "there is no header model: send a model's name, or name@version")
    return model


def _reply(raw: bytes | None, default: int) -> int:
    if raw is None:
        return default
    text = raw.decode("latin-1").strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise BadRecord("bad_reply_partition", f"reply-partition is {text[:60]!r}: send a partition's number")
    return int(text)


def _deadline(raw: bytes | None, published: float, longest_s: float) -> float:
    latest = published + longest_s
    if raw is None:
        return latest
    try:
        deadline = float(raw)
    except ValueError:
        deadline = math.nan
    if not math.isfinite(deadline):
        raise BadRecord("bad_deadline", f"deadline is {raw[:60]!r}: send seconds since 1970, or leave it out")
    return min(deadline, latest)


def _payload(value: bytes, headers: dict[str, bytes]) -> Payload:
    if not value:
        raise BadRecord("empty_value", "the request has no input: send one; a cancellation has no value")
    told = headers.get("content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if told == READINGS:
        return Payload(READINGS, value)
    if told == TENSOR:
        return _tensor(value, headers)
    if told not in ("", "application/octet-stream", *CONTENT_TYPES):
        known = ", ".join((*CONTENT_TYPES, TENSOR, READINGS))
        raise BadRecord("unknown_content_type", f"content-type {told!r} is unknown: send {known}")
    kind, shape = picture_type(value, headers)
    return Payload(kind, value, shape)


def _tensor(value: bytes, headers: dict[str, bytes]) -> Payload:
    dtype = headers.get("dtype", b"").decode("latin-1").strip()
    text = headers.get("shape", b"").decode("latin-1").replace(" ", "")
    if dtype not in DTYPES:
        raise BadRecord("bad_tensor", f"dtype is {dtype[:60]!r}: send {', '.join(DTYPES)}")
    if _SHAPE.fullmatch(text) is None:
        raise BadRecord("bad_tensor", f"shape is {text[:60]!r}: send sides as in 3,224,224")
    shape = tuple(map(int, filter(None, text.split(","))))
    size = math.prod(shape) * int(re.sub(r"\D", "", dtype)) // 8
    if size != len(value):
        raise BadRecord(
            "bad_tensor", f"{dtype} [{text}] stands for {size} bytes but not {len(value)}: send all of them"
        )
    return Payload(TENSOR, value, shape, dtype)
