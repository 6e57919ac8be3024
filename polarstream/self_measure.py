"""`polarstream bench throughput` and `latency`: what this machine and this broker do, in half a minute.

One worker process with one stream of three fields; topics of its own, deleted afterwards. For a comparison
with other tools, each in its own environment, see `benchmarks/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from connectors.publisher import Publisher
from connectors.source import Message
from polarstream.delivery_proof import ProofOptions, WorkerProcess, make_readings, worker_toml
from polarstream.reader import Reader, Start
from polarstream.status import running_workers
from polarstream.topics import delete_topics, list_topics
from streams.config import KafkaConfig
from streams.errors import RetryLater, Stop
from streams.kafka import TopicSpec, client_options, ensure_topics

Progress = Callable[[str, float], None]

_INSTANCE: Final = "bench"
_SILENT_S: Final = 60.0
_WARM_UP_S: Final = 2.0
_LOOK_S: Final = 0.02


@dataclass(frozen=True)
class Load:
    """What the worker is given."""

    sensors: int = 1000
    partitions: int = 4
    delivery: str = "at_least_once"


@dataclass(frozen=True)
class Throughput:
    """Readings that lay ready, from the first prediction to the last.

    Attributes:
        per_s: predictions a second once they come.
        startup_s: from the start of the process to the first prediction.
        cpu_us_per_reading: processor time of the worker, its start included.
        peak_mb: peak resident memory of the worker.
    """

    readings: int
    per_s: float
    startup_s: float
    cpu_us_per_reading: float
    peak_mb: float


@dataclass(frozen=True)
class Latency:
    """Publishing of a reading to its prediction in a reader's hands, at a steady rate.

    Attributes:
        cpu_share: of one processor, by the worker.
    """

    readings: int
    rate_hz: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    cpu_share: float


async def measure_throughput(
    kafka: KafkaConfig, load: Load, readings: int, progress: Progress | None = None
) -> Throughput:
    """Publish `readings`, then start a worker and time it.

    Raises:
        Stop: the worker gave up.
        RetryLater: no prediction came for a minute.
    """
    tell = progress or (lambda what, share: None)
    async with _bench(kafka, load) as bench:
        await bench.publish_all(readings, tell)
        async with _clients(kafka) as (admin, consumer):
            started = heard = time.monotonic()
            bench.worker.start()
            seen, first_at, first_count = 0, 0.0, 0
            while seen < readings:
                await asyncio.sleep(_LOOK_S)
                done = await bench.done(admin, consumer)
                now = time.monotonic()
                if done and not seen:
                    first_at, first_count = now, done
                heard = now if done > seen else heard
                seen = done
                bench.check(heard, f"{seen} of {readings} predictions came")
                tell("scoring", seen / readings)
            ended = time.monotonic()
        cpu_s, peak_mb = bench.usage()
        return Throughput(
            readings=readings,
            per_s=(seen - first_count) / max(ended - first_at, 1e-9),
            startup_s=first_at - started,
            cpu_us_per_reading=cpu_s / readings * 1e6,
            peak_mb=peak_mb,
        )


async def measure_latency(
    kafka: KafkaConfig, load: Load, rate_hz: float, seconds: float, progress: Progress | None = None
) -> Latency:
    """Publish at a steady rate and time each prediction; the first two seconds are not counted.

    Raises:
        Stop: the worker gave up.
        RetryLater: no prediction came for a minute.
    """
    tell = progress or (lambda what, share: None)
    async with _bench(kafka, load) as bench:
        bench.worker.start()
        async with Reader(kafka, [bench.predictions], Start("latest")) as reader:
            await bench.publish([_reading(0, load.sensors)])
            heard = time.monotonic()
            while not await reader.poll(0.5):
                bench.check(heard, "the worker is starting")
            cpu_before, counted_from = bench.usage()[0], time.time()
            feeding = asyncio.create_task(bench.feed(rate_hz, seconds + _WARM_UP_S, tell))
            try:
                latencies = await _collect(bench, reader, feeding, counted_from + _WARM_UP_S)
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
            cpu_s = bench.usage()[0] - cpu_before
        latencies.sort()
        return Latency(
            readings=len(latencies),
            rate_hz=rate_hz,
            p50_ms=quantile(latencies, 0.5) * 1000,
            p95_ms=quantile(latencies, 0.95) * 1000,
            p99_ms=quantile(latencies, 0.99) * 1000,
            max_ms=latencies[-1] * 1000,
            cpu_share=cpu_s / (time.time() - counted_from),
        )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the ordered values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def _collect(
    bench: _Bench, reader: Reader, feeding: asyncio.Task[int], count_from: float
) -> list[float]:
    """Seconds from publishing to reading, of every prediction whose reading is not of the warm-up."""
    decode = msgspec.json.Decoder(_Seen).decode
    latencies: list[float] = []
    seen, heard = 0, time.monotonic()
    while not feeding.done() or seen < feeding.result():
        records = await reader.poll(0.2)
        now = time.time()
        heard = time.monotonic() if records else heard
        seen += len(records)
        for record in records:
            published = decode(record.value or b"").ts
            if published >= count_from:
                latencies.append(now - published)
        bench.check(heard, f"{seen} predictions came")
    if not latencies:
        raise RetryLater("no prediction was timed: measure for longer")
    return latencies


class _Seen(msgspec.Struct):
    ts: float


class _Bench:
    """One worker with topics of its own."""

    def __init__(
        self, publisher: Publisher, name: str, folder: Path, worker: WorkerProcess, load: Load
    ) -> None:
        self.worker = worker
        self.predictions = f"{name}-predictions"
        self._publisher = publisher
        self._name = name
        self._topic = f"{name}-in"
        self._folder = folder
        self._load = load

    async def publish(self, messages: Sequence[Message]) -> None:
        await self._publisher.publish(self._topic, messages)

    async def publish_all(self, readings: int, tell: Progress) -> None:
        part: list[Message] = []
        options = ProofOptions(readings=readings, sensors=self._load.sensors)
        for number, message in enumerate(make_readings(options)):
            part.append(message)
            if len(part) >= 5000:
                await self.publish(part)
                part = []
                tell("publishing", number / readings)
        await self.publish(part)
        await self._publisher.flush()

    async def feed(self, rate_hz: float, seconds: float, tell: Progress) -> int:
        """Publish at a steady rate, in slices of 5 ms; returns how many."""
        began, sent = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            due = int(passed * rate_hz)
            if due > sent:
                await self.publish([_reading(n, self._load.sensors) for n in range(sent, due)])
                sent = due
            tell("measuring", passed / seconds)
            await asyncio.sleep(0.005)
        await self._publisher.flush()
        return sent

    async def done(self, admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer) -> int:
        """How many readings are scored, without reading their predictions, which would cost a processor."""
        if self._load.delivery == "exactly_once":  # the ends of the logs count transaction markers too
            try:
                committed = await admin.list_consumer_group_offsets(self._name)
            except GroupCoordinatorNotAvailableError:
                return 0  # a fresh broker
            return sum(c.offset for p, c in committed.items() if p.topic == self._topic and c.offset > 0)
        partitions = [TopicPartition(self.predictions, n) for n in range(self._load.partitions)]
        return sum((await consumer.end_offsets(partitions)).values())

    def usage(self) -> tuple[float, float]:
        """Processor seconds and peak memory in MB of the worker."""
        for found in running_workers(self._folder):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(found.pid)
                times = process.cpu_times()
                return times.user + times.system, _peak_bytes(process) / 1e6
        return 0.0, 0.0

    def check(self, heard: float, so_far: str) -> None:
        """Give up when the worker has, or when nothing was heard for long."""
        if self.worker.exit_code is not None:
            raise Stop(f"the worker ended with exit code {self.worker.exit_code}: {self._last_words()}")
        if time.monotonic() - heard > _SILENT_S:
            raise RetryLater(f"{so_far}, then none for {_SILENT_S:.0f} s: {self._last_words()}")

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._folder / "worker.log").read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else "it said nothing"
        return "it said nothing"


@contextlib.asynccontextmanager
async def _clients(kafka: KafkaConfig) -> AsyncIterator[tuple[AIOKafkaAdminClient, AIOKafkaConsumer]]:
    admin, consumer = AIOKafkaAdminClient(**client_options(kafka)), AIOKafkaConsumer(**client_options(kafka))
    await admin.start()
    await consumer.start()
    try:
        yield admin, consumer
    finally:
        await consumer.stop()
        await admin.close()


@contextlib.asynccontextmanager
async def _bench(kafka: KafkaConfig, load: Load) -> AsyncIterator[_Bench]:
    name = f"bench-{secrets.token_hex(4)}"
    folder = Path(tempfile.mkdtemp(prefix="polarstream-bench-"))
    options = ProofOptions(partitions=load.partitions, delivery=load.delivery)
    path = folder / "worker.toml"
    path.write_text(worker_toml(kafka, name, folder, options, _INSTANCE))
    worker = WorkerProcess(name, path, folder / "worker.log")
    try:
        outputs = {f"{name}-{kind}": TopicSpec(load.partitions) for kind in ("in", "predictions")}
        await ensure_topics(kafka, outputs)
        async with Publisher(kafka) as publisher:
            yield _Bench(publisher, name, folder, worker, load)
    finally:
        await asyncio.to_thread(worker.stop)
        shutil.rmtree(folder, ignore_errors=True)
        ours = [t.name for t in await list_topics(kafka, internal=True) if t.name.startswith(f"{name}-")]
        await delete_topics(kafka, ours)


def _reading(number: int, sensors: int) -> Message:
    sensor = f"s{number % sensors}"
    reading: dict[str, Any] = {
        "sensor_id": sensor,
        "ts": time.time(),
        "temperature": round(random.gauss(21, 0.2), 4),
        "humidity": round(random.gauss(45, 1), 4),
        "pressure": round(random.gauss(1013, 0.5), 4),
    }
    return Message(sensor.encode(), msgspec.json.encode(reading))


def _peak_bytes(process: psutil.Process) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    return float(process.memory_info().rss)
