"""One version of a model at work: items wait, go in batches to the pool, and come back as answers.

The shell around `gpu_inference.serving`: the batcher decides what goes when, the pool where; here are the
waiting and the threads that prepare batches and read answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpu_inference.errors import EngineError
from gpu_inference.models import manifest as manifests
from gpu_inference.models.binding import Binding
from gpu_inference.models.manifest import ImageInput, Manifest, SeriesInput, TensorInput
from gpu_inference.serving.batcher import Batch, Dropped, Item, Limits, MicroBatcher, Policy, Reason
from gpu_inference.tasks.geometry import Geometry
from gpu_inference.tasks.numbers import SeriesPreprocessor, TensorPreprocessor
from gpu_inference.tasks.preprocessing import Preprocessor
from gpu_inference.tasks.task import task_of
from streams import metrics

if TYPE_CHECKING:
    from gpu_inference.models.folder import ModelVersion
    from gpu_inference.serving.pool import DevicePool
    from gpu_inference.serving.slot import Answer

#: Of pictures, tensors and windows of readings: `fit` and `fill` for each.
AnyPreprocessor: TypeAlias = Preprocessor | TensorPreprocessor | SeriesPreprocessor
#: What `fit` gave, and of a picture where it came from.
Fitted: TypeAlias = tuple[NDArray[Any], Geometry | None]

log = logging.getLogger("polarstream.serving")

#: Items that wait at the most, as batches of the largest size: the decoded pictures take memory.
QUEUED_BATCHES = 3


#: Batches of inputs and of outputs up to this size are handled on the loop: a thread takes longer to wake.
INLINE_BYTES = 32 << 10


@dataclass(frozen=True, slots=True)
class Request:
    """What one item is, and who waits for it.

    Attributes:
        fitted: what the preprocessor's `fit` gave.
        geometry: of a picture, likewise.
        offered_s: when it came here, on the monotonic clock.
        done: gets the result, on the loop.
    """

    fitted: NDArray[Any]
    geometry: Geometry | None
    offered_s: float
    done: Callable[[Result], None]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an item: an answer, or why there is none.

    Attributes:
        who: model, version and SHA-256 of its file.
        answer: of the model's task; None where there is none.
        dropped: why the item was never run, by its stream's policy.
        error: why no device could run it.
        device: that gave the answer.
        batch: items in its batch.
        failovers: devices that failed its batch before.
        late: whether the answer comes after the frame's deadline.
        seconds: that the device took over the batch.
    """

    who: Mapping[str, str]
    answer: dict[str, Any] | None = None
    dropped: Reason | None = None
    error: str = ""
    device: str = ""
    batch: int = 0
    failovers: tuple[str, ...] = ()
    late: bool = False
    seconds: float = 0.0


class ModelServer:
    """Serves one version. All methods belong to the event loop.

    Args:
        version: of the model.
        binding: how it is fed.
        pool: where it is open under `key`.
        threads: prepare batches and read answers.
        pad: batches have the sizes that were measured.
        freed: is called when a device has room again: versions share the devices, and each must look then.
    """

    def __init__(
        self,
        version: ModelVersion,
        binding: Binding,
        pool: DevicePool,
        threads: Executor,
        pad: bool,
        freed: Callable[[], None],
    ) -> None:
        self.version = version
        self.key = key_of(version)
        self.preprocessor = _preprocessor(version.manifest)
        self._binding = binding
        self._freed = freed
        self._pool = pool
        self._threads = threads
        self._row_bytes = math.prod(binding.shape) * np.dtype(binding.dtype).itemsize
        self._task = task_of(version.manifest, version.labels)
        limits = version.manifest.limits
        self.batcher: MicroBatcher[Request] = MicroBatcher(
            Limits(
                max_batch=binding.max_batch,
                max_delay_ms=limits.max_delay_ms,
                max_age_ms=limits.max_age_ms,
                max_queue=max(16, QUEUED_BATCHES * binding.max_batch),
                pad=pad,
            ),
            pool.curve(self.key),
        )
        #: What predictions say of it.
        self.who = {
            "model": version.name,
            "version": version.version,
            "sha256": version.model_sha256,
        }
        self._held = 0
        self._idle: Callable[[], None] | None = None
        self._preparing = 0
        self._tickets = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        name = (version.name, version.version)
        self._batches = metrics.BATCH_FRAMES.labels(*name)
        self._seconds = {
            stage: metrics.INFER_SECONDS.labels(*name, stage)
            for stage in ("queue", "prepare", "compute", "post")
        }

    def hold(self) -> None:
        """A frame is on its way to this version, which stays until `release`."""
        self._held += 1

    def release(self) -> None:
        """A frame is answered, or will never come."""
        self._held -= 1
        self._tell_idle()

    def when_idle(self, tell: Callable[[], None]) -> None:
        """Have `tell` called once, when nothing holds this version: at once where nothing does."""
        self._idle = tell
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self._held == 0 and self._idle is not None:
            tell, self._idle = self._idle, None
            tell()

    def forget(self) -> None:
        """Take this version's gauges back."""
        metrics.INFER_QUEUE.remove(self.version.name, self.version.version)

    async def offer(
        self, source: str, created_s: float, request: Request, policy: Policy, priority: int
    ) -> None:
        """Let an item wait; returns once it does, which under `block` takes until there is room.

        Args:
            source: the camera.
            created_s: when the frame was taken, on the monotonic clock.
            request: what to run; its `done` is called exactly once.
            policy: of its stream.
            priority: of its stream.
        """
        while policy is Policy.BLOCK and self.batcher.full:
            self._room.clear()
            await self._room.wait()
        self._tickets += 1
        item = Item(source, self._tickets, created_s, request, priority, policy)
        self._drop(self.batcher.offer(item, time.monotonic()))
        self._news.set()

    def revoke(self, request: Request) -> None:
        """Take an item back that nobody waits for any more; one that runs already goes on."""
        self._drop(self.batcher.revoke(lambda item: item.payload is request))
        self.wake()

    def wake(self) -> None:
        """Look again: a device has come or gone."""
        self._news.set()

    async def run(self) -> None:
        """Send batches until cancelled."""
        try:
            while True:
                self._news.clear()
                self._step()
                metrics.INFER_QUEUE.labels(self.version.name, self.version.version).set(len(self.batcher))
                due = self.batcher.due_s()
                wait_s = None
                if due is not None and self._free()[0] > 0:
                    wait_s = max(0.0, due - time.monotonic())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):  # wait_for makes a task of it
                        await self._news.wait()
        finally:
            for task in self._running:
                task.cancel()

    def _free(self) -> tuple[int, int]:
        """Devices that could start a batch and those that could have the next one; less what is under way."""
        idle, busy = self._pool.free(self.key)
        taken = min(idle, self._preparing)
        return idle - taken, max(0, busy - (self._preparing - taken))

    def _step(self) -> None:
        now = time.monotonic()
        self._drop(self.batcher.expire(now))
        while (batch := self.batcher.take(now, *self._free())) is not None:
            self._preparing += 1
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        if not self.batcher.full:
            self._room.set()

    async def _run(self, batch: Batch[Request]) -> None:
        loop = asyncio.get_running_loop()
        taken = time.monotonic()
        for item in batch.items:
            self._seconds["queue"].inc(max(0.0, taken - item.payload.offered_s))
        try:
            try:
                if batch.size * self._row_bytes <= INLINE_BYTES:
                    inputs = self._stage(batch)
                else:
                    inputs = await loop.run_in_executor(self._threads, self._stage, batch)
                prepared = time.monotonic()
                future = self._pool.submit(self.key, {self._binding.input: inputs})
            finally:
                self._preparing -= 1
                self._freed()
            answer = await asyncio.wrap_future(future)
            computed = time.monotonic()
            if sum(array.nbytes for array in answer.outputs.values()) <= INLINE_BYTES:
                answers = self._read(answer, batch)
            else:
                answers = await loop.run_in_executor(self._threads, self._read, answer, batch)
        except EngineError as error:
            self._fail(batch, str(error))
            return
        except Exception as error:
            # a fault of ours must not hold its items up: they go to the dead letter, and can be replayed
            log.exception("a batch of %s failed", self.key)
            self._fail(batch, f"{type(error).__name__}: {error}")
            return
        now = time.monotonic()
        self._seconds["prepare"].inc(prepared - taken)
        self._seconds["compute"].inc(answer.seconds)
        self._seconds["post"].inc(now - computed)
        self._batches.observe(len(batch.items))
        late = self.batcher.answered(batch, now)
        for item, given in zip(batch.items, answers, strict=True):
            item.payload.done(
                Result(
                    who=self.who,
                    answer=given,
                    device=answer.device,
                    batch=len(batch.items),
                    failovers=answer.failovers,
                    late=bool(late) and self.batcher.is_late(item, now),
                    seconds=answer.seconds,
                )
            )
        self._freed()

    def _stage(self, batch: Batch[Request]) -> NDArray[Any]:
        """Make the batch's input, on a thread."""
        rows = np.empty((self._binding.fixed_batch or batch.size, *self._binding.shape), self._binding.dtype)
        for row, item in zip(rows, batch.items, strict=False):
            self.preprocessor.fill(item.payload.fitted, row)
        rows[len(batch.items) :] = 0
        return rows

    def _read(self, answer: Answer, batch: Batch[Request]) -> list[dict[str, Any]]:
        geometries = [item.payload.geometry for item in batch.items]
        return self._task.answers(answer.outputs, len(batch.items), geometries)

    def _fail(self, batch: Batch[Request], why: str) -> None:
        self.batcher.give_up(batch)
        for item in batch.items:
            item.payload.done(Result(who=self.who, error=why))
        self._freed()

    def _drop(self, dropped: list[Dropped[Request]]) -> None:
        for one in dropped:
            one.item.payload.done(Result(who=self.who, dropped=one.reason))


def _preprocessor(manifest: Manifest) -> AnyPreprocessor:
    match manifest.input:
        case ImageInput() as picture:
            return Preprocessor(picture, manifests.fit_of(manifest))
        case SeriesInput() as series:
            return SeriesPreprocessor(series)
        case TensorInput() as tensor:
            return TensorPreprocessor(tensor)


def key_of(version: ModelVersion) -> str:
    """What a version is called in the pool."""
    return f"{version.name}@{version.version}"
