"""The agent of requests: an input and a model's name in, one result out.

Each request is a task of its own: routed, prepared, offered to the model's batcher, answered; so a slow model
or one that is being loaded holds up nobody else. At least once a result leaves as soon as it is there, and
only the commit waits for the requests before it: after a crash some are answered again, with the same id.
Exactly once, results leave with their chunk, in the transaction that commits it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from agents.model_server import Fitted, Request, Result
from agents.publishers import Output
from agents.request_inputs import InputReader
from gpu_inference.errors import UnknownModel
from gpu_inference.serving.batcher import Policy
from gpu_inference.tasks.preprocessing import Preprocessor
from streams import metrics
from streams.codecs import dead_letter
from streams.errors import BadRecord
from streams.frames import rejected_message
from streams.requests import (
    Cancellation,
    Failure,
    InferenceRequest,
    InferenceResult,
    RefusedRequest,
    RequestBatch,
    encode_result,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from agents.model_server import ModelServer
    from agents.serving import Serving
    from streams.app import StreamApp
    from streams.checkpoint import Changes, InputPartition
    from streams.config import RequestsConfig, TopicsConfig
    from streams.records import Chunk, Rejected

#: Requests of a partition that may wait for an answer; what waits is an input, up to a megabyte.
MAX_REQUESTS = 512
#: Chunks of a partition that may wait for a request before them. Under a trickle a chunk is one request.
MAX_CHUNKS = 16_384

ROLE = "answer-requests"


class Done(NamedTuple):
    """A request that is settled: its result, and the message if it was refused."""

    result: InferenceResult | None
    reply: int
    refused: Rejected | None = None


class RequestPartition:
    """What a worker has of one partition of requests; a participant of its checkpoints without state."""

    def __init__(self, partition: InputPartition) -> None:
        self.partition = partition
        #: Offset up to which requests were taken in.
        self.taken = -1
        self.closed = False
        self.last: asyncio.Task[None] | None = None
        # what ends a request early, once it is under way
        self._requests: dict[str, asyncio.Timeout | None] = {}
        self._cancelled: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._chunks = 0
        self._room = asyncio.Event()

    def snapshot(self) -> Changes:
        """See `streams.checkpoint.Participant`."""
        return []

    async def wait_for_room(self) -> None:
        """Wait while too much is under way."""
        while len(self._requests) >= MAX_REQUESTS or self._chunks >= MAX_CHUNKS:
            self._room.clear()
            await self._room.wait()

    def start(self, identity: str, task: asyncio.Task[Done]) -> None:
        """Note the task of a request."""
        self._requests[identity] = None
        self._tasks.add(task)

        def done(_: asyncio.Task[Done]) -> None:
            self._tasks.discard(task)
            self._requests.pop(identity, None)
            self._cancelled.discard(identity)
            self._room.set()

        task.add_done_callback(done)

    def start_chunk(self, task: asyncio.Task[None]) -> None:
        """Note the task that ends a chunk, the last one in order."""
        self.last = task
        self._tasks.add(task)
        self._chunks += 1

        def done(_: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._chunks -= 1
            self._room.set()

        task.add_done_callback(done)

    @contextlib.asynccontextmanager
    async def limited(self, identity: str, left_s: float) -> AsyncIterator[None]:
        """Do what may take so many seconds, and ends when the request is cancelled.

        Raises:
            TimeoutError: it has ended early; `is_cancelled` tells why.
        """
        if identity in self._cancelled or left_s <= 0:
            raise TimeoutError
        try:
            async with asyncio.timeout(left_s) as timeout:
                self._requests[identity] = timeout
                yield
        finally:
            self._requests[identity] = None

    def is_cancelled(self, identity: str) -> bool:
        """Tell whether a request is cancelled by its client."""
        return identity in self._cancelled

    def cancel(self, identity: str) -> None:
        """End a request that its client has cancelled; one that is answered stays so."""
        if identity in self._requests:
            self._cancelled.add(identity)
            timeout = self._requests[identity]
            if timeout is not None and not timeout.expired():
                timeout.reschedule(0)

    def close(self) -> None:
        """Give up all that is under way: another worker will answer it."""
        self.closed = True
        for task in self._tasks:
            task.cancel()


class RequestStream:
    """The agent's side of the topic of requests.

    Args:
        config: of it.
        topics: names of the output topics.
        serving: the worker's models.
        exactly_once: results leave with their chunk.
    """

    def __init__(
        self, config: RequestsConfig, topics: TopicsConfig, serving: Serving, exactly_once: bool
    ) -> None:
        self._config = config
        self._topics = topics
        self._serving = serving
        self._exactly_once = exactly_once
        self._reader = InputReader(config.max_pixels)

    async def take(self, share: RequestPartition, chunk: Chunk, batch: RequestBatch) -> None:
        """Take in a chunk; returns when its requests are under way."""
        tasks = []
        at = {offset: i for i, offset in enumerate(chunk.offsets)}
        for entry in batch.entries:
            if entry.offset <= share.taken:
                continue
            share.taken = entry.offset
            if isinstance(entry, Cancellation):
                share.cancel(entry.id)
                continue
            await share.wait_for_room()
            task = asyncio.create_task(self._settle(share, chunk, at[entry.offset], entry))
            share.start(entry.id or f"offset {entry.offset}", task)
            tasks.append(task)
        batch.entries = []  # the inputs may go as soon as they are answered
        share.start_chunk(asyncio.create_task(self._finish(share, batch, tasks, share.last)))

    async def _settle(
        self, share: RequestPartition, chunk: Chunk, i: int, entry: InferenceRequest | RefusedRequest
    ) -> Done:
        """Answer a request, or say why there is no answer."""
        there = await share.partition.emitter.producer.partitions_for(self._config.results_topic)
        reply = entry.reply if entry.reply in there else chunk.partition
        if isinstance(entry, RefusedRequest):
            done = Done(_failed(entry.id, entry.message), reply, entry.message)
        else:
            try:
                if reply != entry.reply:
                    detail = f"there is no partition {entry.reply}: send one below {len(there)}, or none"
                    raise BadRecord("bad_reply_partition", detail)
                done = Done(await self._answer(share, entry), reply)
            except BadRecord as error:
                refused = rejected_message(chunk, i, error)
                done = Done(_failed(entry.id, refused), reply, refused)
        if done.result is None:
            return done
        latency_ms = round(time.time() * 1000 - chunk.timestamps_ms[i], 3)
        result = msgspec.structs.replace(done.result, latency_ms=latency_ms)
        if not self._exactly_once and not share.partition.broken:
            key, value = result.id.encode(), encode_result(result)
            await share.partition.emitter.emit_one(self._config.results_topic, done.reply, key, value)
        return done._replace(result=result)

    async def _answer(self, share: RequestPartition, request: InferenceRequest) -> InferenceResult:
        try:
            async with share.limited(request.id, request.deadline - time.time()):
                result = await self._run(request)
        except TimeoutError:
            return InferenceResult(request.id, "cancelled" if share.is_cancelled(request.id) else "expired")
        if result.error:
            raise BadRecord("inference_failed", f"{result.error}: replay it when devices are back")
        answer = result.answer
        if answer is None or "error" in answer:
            raise BadRecord("not_finite", "the model gave NaN or infinity for this input: look at both")
        return InferenceResult(
            request.id,
            "ok",
            answer,
            device=result.device,
            batch=result.batch,
            compute_ms=round(result.seconds * 1000, 3),
            model=result.who["model"],
            version=result.who["version"],
            sha256=result.who["sha256"],
        )

    async def _run(self, request: InferenceRequest) -> Result:
        try:
            servers = await self._serving.route(request.model, request.id, patient=False)
        except UnknownModel as error:
            raise BadRecord("unknown_model", str(error)) from error
        kind = type(servers[0].preprocessor)
        for server in servers[1:]:
            if type(server.preprocessor) is not kind:
                server.release()
        servers = [server for server in servers if type(server.preprocessor) is kind]
        preprocessors = [server.preprocessor for server in servers]
        try:
            if kind is Preprocessor:
                loop = asyncio.get_running_loop()
                fitted = await loop.run_in_executor(
                    self._serving.threads, self._reader.fit, request, preprocessors
                )
            else:
                fitted = self._reader.fit(request, preprocessors)
        except BaseException:
            for server in servers:
                server.release()
            raise
        for server, prepared in zip(servers[1:], fitted[1:], strict=True):
            # a shadow never holds anybody up, and nobody waits for its answer: this never waits
            await self._offer(server, prepared, None, Policy.LATEST, -100)
        server, prepared = servers[0], fitted[0]
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        waiting = await self._offer(server, prepared, future, Policy.BLOCK, 0)
        try:
            return await future
        except asyncio.CancelledError:
            server.revoke(waiting)
            raise

    async def _offer(
        self,
        server: ModelServer,
        prepared: Fitted,
        future: asyncio.Future[Result] | None,
        policy: Policy,
        priority: int,
    ) -> Request:
        now = time.monotonic()
        request = Request(*prepared, now, functools.partial(_released, server, future))
        try:
            await server.offer(self._config.topic, now, request, policy, priority)
        except asyncio.CancelledError:
            server.release()
            raise
        return request

    async def _send(self, share: RequestPartition, reply: int, settled: Sequence[Done]) -> None:
        results = [done.result for done in settled if done.result is not None]
        keys = [result.id.encode() for result in results]
        values = [encode_result(result) for result in results]
        await share.partition.emitter.emit(self._config.results_topic, reply, keys, values)

    async def _finish(
        self,
        share: RequestPartition,
        batch: RequestBatch,
        tasks: Sequence[asyncio.Task[Done]],
        before: asyncio.Task[None] | None,
    ) -> None:
        """Wait for a chunk's requests and for the chunk before it; from then on it may be committed."""
        partition = share.partition
        try:
            settled = await asyncio.gather(*tasks)
            if before is not None:
                await asyncio.wait({before})
            if share.closed or partition.broken:
                return
            refused = [done.refused for done in settled if done.refused is not None]
            letters = [dead_letter(one, batch.topic, batch.partition) for one in refused]
            async with partition.turn(ROLE, batch):
                if self._exactly_once:
                    by_reply = defaultdict(list)
                    for done in settled:
                        by_reply[done.reply].append(done)
                    for reply, part in by_reply.items():
                        await self._send(share, reply, part)
                output = Output(*zip(*letters, strict=True)) if letters else Output()
                await partition.emitter.emit(self._topics.dead_letter, batch.partition, *output)
        except Exception as error:
            if not partition.broken:
                await partition.crash(error)
            return
        for one in refused:
            metrics.DEAD_LETTERS.labels(self._config.name, one.reason).inc()
        results = [done.result for done in settled if done.result is not None]
        for result in results:
            metrics.REQUESTS.labels(result.status).inc()
        answered = [result.latency_ms / 1000 for result in results if result.status == "ok"]
        if answered:
            metrics.LATENCY.observe(self._config.name, np.array(answered))


def make_request_agent(
    app: StreamApp, topic: Any, config: RequestsConfig, topics: TopicsConfig, serving: Serving
) -> Any:
    """Declare the agent that answers requests.

    Args:
        app: the application.
        topic: a `streams.topics.RequestTopic`.
        config: the topic of requests.
        topics: names of the output topics.
        serving: the worker's models.
    """
    stream = RequestStream(config, topics, serving, app.exactly_once)

    @app.agent(topic, name=ROLE)  # type: ignore[untyped-decorator]
    async def answer(batches: Any) -> None:
        async for event in batches.events():
            batch, chunk = event.value, event.message.value
            partition = app.input_partition(batch)
            share: Any = partition.participants.get(ROLE)
            if share is None:
                share = RequestPartition(partition)
                partition.participants[ROLE] = share
                partition.on_close.append(share.close)
            try:
                await stream.take(share, chunk, batch)
            except Exception as error:
                # Faust would start the agent anew and leave the chunk out
                await partition.crash(error)
                raise

    return answer


def _failed(identity: str | None, refused: Rejected) -> InferenceResult | None:
    if identity is None:
        return None
    return InferenceResult(identity, "error", error=Failure(refused.reason, refused.detail))


def _released(server: ModelServer, future: asyncio.Future[Result] | None, result: Result) -> None:
    server.release()
    if future is not None and not future.done():
        future.set_result(result)
