"""The infer agent: camera frames decoded, batched, run on the devices, predictions out.

A chunk of frames is taken in (decoded on threads, handed to the model's batcher) and answered later, since
its frames go in batches with those of other chunks and cameras. A chunk's outputs leave in one go, when its
last frame is answered, and chunk after chunk: so predictions of a camera come in the order of its frames,
and what may be committed never runs ahead of what was answered.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from agents.answering import Answering, Planned
from agents.model_server import Fitted, Result
from agents.pictures import PictureDecoder
from agents.publishers import Output, PublisherBook
from gpu_inference.models.cache import ResultCache, Signature, digest_of, signature_of
from gpu_inference.serving.batcher import Policy
from gpu_inference.tasks.preprocessing import Preprocessor
from streams import metrics
from streams.errors import BadRecord
from streams.frames import Frame, FrameBatch, rejected_message
from streams.records import Chunk, Rejected
from streams.state import BlobState

if TYPE_CHECKING:
    from agents.serving import Serving
    from streams.app import StreamApp
    from streams.checkpoint import Changes, InputPartition
    from streams.config import FrameStreamConfig, TopicsConfig

#: Chunks of a partition that may be under way; a chunk of frames is about a megabyte.
MAX_CHUNKS = 16

_encode = msgspec.json.Encoder().encode


class InferPartition:
    """What a worker has of one input partition of frames; a participant of its checkpoints."""

    def __init__(self, partition: InputPartition, changelog: Any) -> None:
        self.partition = partition
        self.publishers = PublisherBook(changelog)
        # A checkpoint's offset is taken before its outputs are, so the state must say how far these go:
        # without it a killed worker's frames were answered twice, exactly once
        self._applied_blob = BlobState("applied", "1")
        saved = self._applied_blob.load(changelog)
        #: Offset up to which everything is answered.
        self.applied: int = -1 if saved is None else saved[1]
        self._saved = self.applied
        self.room = asyncio.Semaphore(MAX_CHUNKS)
        self.last: asyncio.Task[None] | None = None
        self.closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def snapshot(self) -> Changes:
        """See `streams.checkpoint.Participant`."""
        changes = self.publishers.snapshot()
        if self._saved != self.applied:
            self._saved = self.applied
            changes += self._applied_blob.dump(b"", self.applied)
        return changes

    def start(self, task: asyncio.Task[None]) -> None:
        """Note a chunk's task, the last one in order."""
        self.last = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Give up the chunks that are under way."""
        self.closed = True
        for task in self._tasks:
            task.cancel()


class FrameStream:
    """The agent's side of one stream of frames.

    Args:
        config: of the stream.
        topics: names of the output topics.
        serving: the worker's models.
    """

    def __init__(self, config: FrameStreamConfig, topics: TopicsConfig, serving: Serving) -> None:
        self._config = config
        self._topics = topics
        self._serving = serving
        self._decoder = PictureDecoder(config.max_pixels)
        cache = None
        if config.cache_ttl_s is not None:
            cache = ResultCache(ttl_s=config.cache_ttl_s, tolerance=config.cache_tolerance)
        policy = Policy(config.policy)
        self._answering = Answering(config.name, serving, policy, config.priority, cache)
        self._decode_s = metrics.DECODE_SECONDS.labels(config.name)

    async def take(self, share: InferPartition, role: str, chunk: Chunk, batch: FrameBatch) -> None:
        """Take in a chunk; returns when all its frames wait for a batch, not when they are answered."""
        await share.room.acquire()
        loop = asyncio.get_running_loop()
        fresh = [frame for frame in batch.frames if frame.offset > share.applied]
        results: list[asyncio.Future[Result | BadRecord]] = [loop.create_future() for _ in fresh]
        # before the frames are offered, so that a chunk is under way as soon as one of them is
        share.start(asyncio.create_task(self._finish(share, role, chunk, batch, fresh, results, share.last)))
        metrics.FRAMES.labels(self._config.name).inc(len(fresh))
        coming = []
        for frame, result in zip(fresh, results, strict=True):
            planned = await self._serving.plan(self._config.model, frame.source)
            digest = None
            if self._answering.cache is not None:
                digest = digest_of(frame.data)
                known = self._answering.known(planned, digest)
                if known is not None:
                    _settle(result, known)
                    continue
            preprocessors = _of_pictures(planned)
            if preprocessors is None:
                planned.release()
                why = f"model {self._config.model} takes no pictures: promote one that does"
                _settle(result, BadRecord("wrong_input", why))
                continue
            signed = self._answering.cache is not None and planned.plan.kind == "single"
            decoded = loop.run_in_executor(self._serving.threads, self._decode, frame, preprocessors, signed)
            coming.append((frame, result, planned, digest, decoded))
        # offered in the order of the log, whichever is decoded first
        for frame, result, planned, digest, decoded in coming:
            try:
                fitted, signature = await decoded
            except BadRecord as error:
                planned.release()
                _settle(result, error)
                continue
            answer = await self._answering.offer(planned, fitted, frame.source, frame.ts, digest, signature)
            answer.add_done_callback(functools.partial(_hand_on, result))

    def _decode(
        self, frame: Frame, preprocessors: Sequence[Preprocessor], signed: bool
    ) -> tuple[list[Fitted], Signature | None]:
        """Decode a frame once and fit it to each model's input, on a thread."""
        started = time.perf_counter()
        try:
            fitted = self._decoder.fit(frame, preprocessors)
            return fitted, signature_of(fitted[0][0]) if signed else None
        finally:
            self._decode_s.inc(time.perf_counter() - started)

    async def _finish(
        self,
        share: InferPartition,
        role: str,
        chunk: Chunk,
        batch: FrameBatch,
        frames: Sequence[Frame],
        results: Sequence[asyncio.Future[Result | BadRecord]],
        before: asyncio.Task[None] | None,
    ) -> None:
        """Wait for a chunk's answers and for the chunk before it; then send all that it gives rise to."""
        partition = share.partition
        try:
            got = await asyncio.gather(*results)
            if before is not None:
                await asyncio.wait({before})
            if share.closed or partition.broken:
                return
            rejected = batch.rejected + self._refusals(chunk, frames, got)
            rejected.sort(key=lambda message: message.offset)
            now = time.time()
            predictions = self._predictions(chunk, frames, got, now)
            async with partition.turn(role, batch):
                seen = share.publishers.observe(chunk, rejected, share.applied)
                share.applied = max(share.applied, batch.last_offset)
                emit = partition.emitter.emit
                await emit(self._topics.predictions, chunk.partition, *predictions)
                await emit(self._topics.dead_letter, chunk.partition, *seen.dead_letters)
            self._count(frames, got, now)
            counters = metrics.of_stream(self._config.name)
            counters.predictions.inc(len(predictions.values))
            counters.lost.inc(seen.lost)
            counters.duplicated.inc(seen.duplicated)
            for message in seen.rejected:
                metrics.DEAD_LETTERS.labels(self._config.name, message.reason).inc()
        except Exception as error:
            if not partition.broken:
                await partition.crash(error)
        finally:
            share.room.release()

    def _refusals(
        self, chunk: Chunk, frames: Sequence[Frame], got: Sequence[Result | BadRecord]
    ) -> list[Rejected]:
        """What becomes a dead letter: pictures that can't be decoded, frames that no device could run."""
        at = {offset: i for i, offset in enumerate(chunk.offsets)}
        refused = []
        for frame, result in zip(frames, got, strict=True):
            if isinstance(result, BadRecord):
                refused.append(rejected_message(chunk, at[frame.offset], result))
            elif result.error:
                error = BadRecord("inference_failed", f"{result.error}: replay it when devices are back")
                refused.append(rejected_message(chunk, at[frame.offset], error))
            elif result.answer is not None and "error" in result.answer:
                detail = "the model gave NaN or infinity for this picture: look at the picture and the model"
                refused.append(rejected_message(chunk, at[frame.offset], BadRecord("not_finite", detail)))
        return refused

    def _predictions(
        self, chunk: Chunk, frames: Sequence[Frame], got: Sequence[Result | BadRecord], now: float
    ) -> Output:
        keys, values = [], []
        for frame, result in zip(frames, got, strict=True):
            if isinstance(result, BadRecord) or result.answer is None or "error" in result.answer:
                continue
            record = {
                "id": f"{chunk.topic}/{chunk.partition}/{frame.offset}/{result.who['model']}",
                "source": frame.source,
                "ts": frame.ts,
                **result.answer,
                "latency_ms": round((now - frame.published) * 1000, 3),
                "device": result.device,
                "batch": result.batch,
                "stream": self._config.name,
                **result.who,
            }
            if result.failovers:
                record["failovers"] = list(result.failovers)
            if result.late:
                record["late"] = True
            keys.append(frame.source.encode())
            values.append(_encode(record))
        return Output(keys, values)

    def _count(self, frames: Sequence[Frame], got: Sequence[Result | BadRecord], now: float) -> None:
        name = self._config.name
        latency_s = []
        for frame, result in zip(frames, got, strict=True):
            if isinstance(result, BadRecord):
                continue
            if result.dropped is not None:
                metrics.FRAMES_DROPPED.labels(name, result.dropped.value).inc()
            if result.late:
                metrics.FRAMES_LATE.labels(name).inc()
            if result.answer is not None:
                latency_s.append(now - frame.published)
        if latency_s:
            metrics.LATENCY.observe(name, np.array(latency_s))


def make_infer_agent(
    app: StreamApp,
    topic: Any,
    config: FrameStreamConfig,
    topics: TopicsConfig,
    serving: Serving,
) -> Any:
    """Declare the agent that runs a model over a stream of frames.

    Args:
        app: the application.
        topic: the stream's `streams.topics.FrameTopic`.
        config: the stream.
        topics: names of the output topics.
        serving: the worker's models.
    """
    role = f"infer-{config.name}"
    stream = FrameStream(config, topics, serving)

    @app.agent(topic, name=role)  # type: ignore[untyped-decorator]
    async def infer(batches: Any) -> None:
        async for event in batches.events():
            batch, chunk = event.value, event.message.value
            partition = app.input_partition(batch)
            share: Any = partition.participants.get(role)
            if share is None:
                share = InferPartition(partition, partition.table.contents(partition.tp.partition))
                partition.participants[role] = share
                partition.on_close.append(share.close)
            try:
                await stream.take(share, role, chunk, batch)
            except Exception as error:
                # Faust would start the agent anew and leave the chunk out
                await partition.crash(error)
                raise

    return infer


def _hand_on(future: asyncio.Future[Any], answer: asyncio.Future[Result]) -> None:
    if not answer.cancelled():
        _settle(future, answer.result())


def _of_pictures(planned: Planned) -> list[Preprocessor] | None:
    """What fits a picture to each server's input; who looks on and takes something else is let go.

    Returns:
        None where one that answers takes no pictures.
    """
    others = [one for one in planned.shadows if not isinstance(one[1].preprocessor, Preprocessor)]
    planned.release([server for _, server in others])
    planned.shadows = [one for one in planned.shadows if one not in others]
    found = [server.preprocessor for server in planned.servers()]
    fit = [one for one in found if isinstance(one, Preprocessor)]
    return fit if len(fit) == len(found) else None


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
