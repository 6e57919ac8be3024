"""Topics whose messages reach agents as chunks, as columns of readings, as frames or as requests."""

from __future__ import annotations

import time
from typing import Any

import faust
from faust import Event

from streams import metrics
from streams.codecs import ReadingCodec
from streams.config import FrameStreamConfig, RequestsConfig, StreamConfig
from streams.frames import read_frames
from streams.requests import read_requests


class ChunkTopic(faust.Topic):  # type: ignore[misc]
    """A topic that agents read as `streams.records.Chunk`."""

    def _compile_decode(self) -> None:
        # `decode` below, instead of a closure around a schema
        pass

    async def decode(self, message: Any, *, propagate: bool = False) -> Any:
        """Wrap the chunk in an event."""
        return Event(self.app, None, message.value, message.headers, message)


class StreamTopic(ChunkTopic):
    """A topic that a stream of the configuration describes."""

    def __init__(
        self,
        app: Any,
        *,
        stream: StreamConfig | FrameStreamConfig | RequestsConfig | None = None,
        **kwargs: Any,
    ) -> None:
        self.stream_config: Any = stream
        if stream is not None:
            kwargs.setdefault("topics", [stream.topic])
        super().__init__(app, **kwargs)

    def _clone_args(self) -> dict[str, Any]:
        return {**super()._clone_args(), "stream": self.stream_config}


class ReadingTopic(StreamTopic):
    """A topic of sensor readings that agents read as `streams.records.ReadingBatch`."""

    def __init__(self, app: Any, *, stream: StreamConfig | None = None, **kwargs: Any) -> None:
        self.codec = ReadingCodec(stream) if stream is not None else None
        super().__init__(app, stream=stream, **kwargs)

    async def decode(self, message: Any, *, propagate: bool = False) -> Any:
        """Decode the chunk into columns; what can't be decoded stands in `rejected`."""
        assert self.codec is not None
        chunk = message.value
        # Faust asks once for each agent of the topic; agents share the columns, and change nothing in them
        decoded = getattr(message, "batch", None)
        if decoded is not None:
            return Event(self.app, None, decoded, message.headers, message)
        started = time.perf_counter()
        batch = self.codec.decode(chunk, time.time())
        metrics.note_decoded(batch, chunk, time.perf_counter() - started)
        message.batch = batch
        return Event(self.app, None, batch, message.headers, message)


class FrameTopic(StreamTopic):
    """A topic of camera frames that agents read as `streams.frames.FrameBatch`."""

    async def decode(self, message: Any, *, propagate: bool = False) -> Any:
        """Read the chunk's headers; what is no frame stands in `rejected`."""
        assert self.stream_config is not None
        batch = read_frames(message.value, self.stream_config, time.time())
        metrics.MESSAGES_IN.labels(batch.stream).inc(len(message.value.values))
        return Event(self.app, None, batch, message.headers, message)


class RequestTopic(StreamTopic):
    """A topic of requests that agents read as `streams.requests.RequestBatch`."""

    async def decode(self, message: Any, *, propagate: bool = False) -> Any:
        """Read the chunk's headers; what is no request stands among the entries as refused."""
        assert self.stream_config is not None
        batch = read_requests(message.value, self.stream_config)
        metrics.MESSAGES_IN.labels(batch.stream).inc(len(message.value.values))
        return Event(self.app, None, batch, message.headers, message)
