"""`polarstream bench delivery`: kill a worker again and again under load, then count what it cost.

Numbered readings are published while a worker process is killed (SIGKILL) at random moments and started
again. Afterwards each prediction is compared with a plain reading-by-reading reference: nothing may be
missing, and each score must be that of a worker that was never killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from connectors.publisher import Publisher
from connectors.source import Message
from polarstream.topics import delete_topics
from streams.config import KafkaConfig
from streams.errors import PolarstreamError, RetryLater, Stop
from streams.kafka import TopicSpec, client_options, ensure_topics
from streams.layout import partition_counts

FIELDS = ("temperature", "humidity", "pressure")
ALPHA, WARMUP, MIN_SD = 0.02, 30, 1e-9

Progress = Callable[[str, float], None]
#: What happens to the workers while readings are published; returns the times of restarts.
Disturbance = Callable[["list[WorkerProcess]", "ProofOptions"], Awaitable[list[float]]]


@dataclass
class ProofOptions:
    """What is done to the worker.

    Attributes:
        readings: how many are published.
        rate_hz: how fast; the kills fall into this time.
        sensors: how many sensors they come from.
        partitions: of the input topic.
        kills: how often a worker is killed.
        workers: how many run beside each other.
        delivery: "at_least_once" or "exactly_once".
        seed: of the kill times.
        settle_s: how long to wait for the last prediction.
    """

    readings: int = 100_000
    rate_hz: float = 5_000
    sensors: int = 200
    partitions: int = 4
    kills: int = 5
    workers: int = 1
    delivery: str = "at_least_once"
    seed: int = 1
    settle_s: float = 60
    checkpoint_interval_ms: int | None = None


@dataclass
class ProofReport:
    """What came out.

    Attributes:
        recovery_s: from each killed worker's new start to the first prediction after it.
        longest_silence_s: the longest time that a partition was without new predictions.
    """

    published: int = 0
    kills: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    out_of_order: int = 0
    seconds: float = 0
    recovery_s: list[float] = field(default_factory=list)
    longest_silence_s: float = 0

    def ok(self, delivery: str) -> bool:
        """Tell whether the promise of this delivery was kept."""
        sound = not (self.lost or self.wrong or self.out_of_order)
        return sound and (delivery != "exactly_once" or not self.duplicated)


class WorkerProcess:
    """A `polarstream worker` as its own process group, with its output in a file."""

    def __init__(self, name: str, config_path: Path, log_path: Path) -> None:
        #: Begins the names of its topics.
        self.name = name
        self._config_path = config_path
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> None:
        """Start the process."""
        self._log = self._log_path.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "polarstream", "worker", "--config", str(self._config_path)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={key: value for key, value in os.environ.items() if not key.startswith("POLARSTREAM_")},
            start_new_session=True,
        )

    def kill(self) -> None:
        """Kill it as a power cut would."""
        self._signal(signal.SIGKILL)

    def stop(self, timeout_s: float = 15) -> int:
        """Stop it as a supervisor would; return its exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -signal.SIGKILL
        self._close()
        return code

    @property
    def exit_code(self) -> int | None:
        """None while it runs or after it was stopped on purpose."""
        return self._process.poll() if self._process is not None else None

    def _signal(self, number: int) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        self._process.wait()
        self._close()

    def _close(self) -> None:
        self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None


def make_readings(options: ProofOptions) -> Iterator[Message]:
    """Make the readings: a level, a slow wave and noise for each sensor, the same for the same seed."""
    chance = random.Random(options.seed)
    begin = time.time() - options.readings / 1000
    for number in range(options.readings):
        sensor = f"s{number % options.sensors}"
        wave = math.sin(number / options.sensors / 50)
        value = msgspec.json.encode(
            {
                "sensor_id": sensor,
                "ts": round(begin + number / 1000, 3),
                "temperature": round(21 + wave + chance.gauss(0, 0.2), 4),
                "humidity": round(45 - 3 * wave + chance.gauss(0, 1), 4),
                "pressure": round(1013 + chance.gauss(0, 0.5), 4),
            }
        )
        yield Message(key=sensor.encode(), value=value)


def reference_score(state: dict[str, list[list[float]]], reading: dict[str, Any]) -> float:
    """Score one reading the plain way: the largest z of its fields, from the past alone."""
    fields = state.setdefault(reading["sensor_id"], [[0, 0.0, 0.0] for _ in FIELDS])
    worst = 0.0
    for name, past in zip(FIELDS, fields, strict=True):
        n, mean, var = past
        d = reading[name] - mean
        if n >= WARMUP:
            worst = max(worst, abs(d) / max(math.sqrt(var), MIN_SD))
        w = max(ALPHA, 1 / (n + 1))
        past[:] = n + 1, mean + w * d, (1 - w) * (var + w * d * d)
    return worst


async def prove(
    kafka: KafkaConfig,
    options: ProofOptions,
    progress: Progress | None = None,
    disturb: Disturbance | None = None,
) -> ProofReport:
    """Run the proof on a broker; its topics have names of their own.

    Args:
        kafka: how the brokers are reached, addresses included.
        options: what is done.
        progress: told what is going on and the share that is done.
        disturb: what happens meanwhile; None: workers are killed as `options` say.

    Raises:
        RetryLater: the workers did not come to the end in time.
    """
    name = f"delivery-{secrets.token_hex(4)}"
    folder = Path(tempfile.mkdtemp(prefix="polarstream-delivery-"))
    report = ProofReport()
    tell = progress or (lambda what, share: None)
    workers: list[WorkerProcess] = []
    try:
        await ensure_topics(kafka, {f"{name}-in": TopicSpec(options.partitions)})
        for number in range(options.workers):
            path = folder / f"worker-{number}.toml"
            path.write_text(worker_toml(kafka, name, folder, options, f"w{number}"))
            workers.append(WorkerProcess(name, path, folder / f"worker-{number}.log"))
        for worker in workers:
            worker.start()
        started = time.time()
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(_feed(kafka, f"{name}-in", options, tell))
            disturbing = tasks.create_task(_as_task((disturb or kill_at_random)(workers, options)))
        report.published = feeding.result()
        restarts = disturbing.result()
        report.kills = len(restarts)
        await _wait_for_predictions(kafka, name, workers, options, tell)
        for worker in workers:
            worker.stop()
        report.seconds = time.time() - started
        await _check(kafka, name, report, restarts)
        return report
    except BaseException:
        for log in sorted(folder.glob("*.log")):
            sys.stderr.write(log.read_text()[-3000:])
        raise
    finally:
        for worker in workers:
            worker.kill()
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(KafkaError, PolarstreamError):
            await delete_topics(kafka, [topic for topic in await partition_counts(kafka) if name in topic])


def worker_toml(kafka: KafkaConfig, name: str, folder: Path, options: ProofOptions, instance: str) -> str:
    """Write the configuration of a worker of the proof."""
    plain = {key: value for key, value in msgspec.to_builtins(kafka).items() if value not in (None, [])}
    lines = [
        f'app_id = "{name}"',
        f"data_dir = {json.dumps(str(folder))}",
        'log_level = "warning"',
        "[kafka]",
    ]
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    lines += ["[topics]"]
    topics = ("predictions", "alerts", "analytics", "dead_letter", "control")
    lines += [f'{key} = "{name}-{key}"' for key in topics]
    lines += ["[worker]", f'delivery = "{options.delivery}"', f'instance_id = "{instance}"']
    if options.checkpoint_interval_ms is not None:
        lines.append(f"checkpoint_interval_ms = {options.checkpoint_interval_ms}")
    lines += ["[[streams]]", 'name = "proof"', f'topic = "{name}-in"', f"partitions = {options.partitions}"]
    lines += [f"[streams.detector]\ntype = 'ewz'\nalpha = {ALPHA}\nwarmup = {WARMUP}\nmin_sd = {MIN_SD}"]
    lines += [f"[streams.fields.{name}]" for name in FIELDS]
    return "\n".join(lines) + "\n"


async def _feed(kafka: KafkaConfig, topic: str, options: ProofOptions, tell: Progress) -> int:
    """Publish at the wanted rate, in slices of 20 ms."""
    begin = time.monotonic()
    sent = 0
    slice_size = max(1, round(options.rate_hz / 50))
    part: list[Message] = []
    async with Publisher(kafka) as publisher:
        for message in make_readings(options):
            part.append(message)
            if len(part) < slice_size:
                continue
            sent += await publisher.publish(topic, part)
            part = []
            tell("publishing", sent / options.readings)
            await asyncio.sleep(max(0.0, begin + sent / options.rate_hz - time.monotonic()))
        sent += await publisher.publish(topic, part)
    return sent


async def _as_task(disturbance: Awaitable[list[float]]) -> list[float]:
    return await disturbance


async def kill_at_random(workers: list[WorkerProcess], options: ProofOptions) -> list[float]:
    """Kill a worker and start it again at random moments."""
    restarts = []
    chance = random.Random(options.seed)
    span_s = options.readings / options.rate_hz
    begin = time.monotonic()
    for moment in sorted(chance.uniform(0.05, 1.0) * span_s for _ in range(options.kills)):
        await asyncio.sleep(max(0.0, begin + moment - time.monotonic()))
        worker = chance.choice(workers)
        worker.kill()
        restarts.append(time.time())
        worker.start()
    return restarts


async def _wait_for_predictions(
    kafka: KafkaConfig, name: str, workers: list[WorkerProcess], options: ProofOptions, tell: Progress
) -> None:
    """Wait until the worker has committed the end of the input."""
    consumer = AIOKafkaConsumer(group_id=name, enable_auto_commit=False, **client_options(kafka))
    await consumer.start()
    try:
        inputs = await _partitions(kafka, f"{name}-in")
        consumer.assign(inputs)
        ends = await consumer.end_offsets(inputs)
        total = sum(ends.values()) or 1
        deadline = time.monotonic() + options.settle_s
        while True:
            done = {tp: await consumer.committed(tp) or 0 for tp in inputs}
            tell("waiting for the last predictions", sum(done.values()) / total)
            if all(done[tp] >= ends[tp] for tp in inputs):
                return
            if all(worker.exit_code is not None for worker in workers):
                raise Stop(f"the workers gave up, with exit code {workers[0].exit_code}: see their output")
            if time.monotonic() > deadline:
                behind = sum(ends[tp] - done[tp] for tp in inputs)
                raise RetryLater(f"the workers are {behind} readings behind after {options.settle_s:.0f} s")
            await asyncio.sleep(0.2)
    finally:
        await consumer.stop()


async def _check(kafka: KafkaConfig, name: str, report: ProofReport, restarts: list[float]) -> None:
    """Compare every prediction with the reference."""
    expected: dict[str, float] = {}
    # a sensor's state lives in its partition
    states: defaultdict[int, dict[str, list[list[float]]]] = defaultdict(dict)
    topic = f"{name}-in"
    async for partition, record in read_all(kafka, topic):
        reading = msgspec.json.decode(record.value)
        expected[f"{topic}/{partition}/{record.offset}/ewz"] = reference_score(states[partition], reading)
    seen: Counter[str] = Counter()
    last: dict[int, int] = {}
    stored_at: list[float] = []
    latest: dict[int, float] = {}
    async for partition, record in read_all(kafka, f"{name}-predictions"):
        prediction = msgspec.json.decode(record.value)
        at = record.timestamp / 1000
        stored_at.append(at)
        report.longest_silence_s = max(report.longest_silence_s, at - latest.get(partition, at))
        latest[partition] = at
        seen[prediction["id"]] += 1
        score = expected.get(prediction["id"])
        if score is None or not math.isclose(prediction["score"], score, rel_tol=1e-9, abs_tol=1e-9):
            report.wrong += 1
        offset = int(prediction["id"].split("/")[2])
        if seen[prediction["id"]] == 1:
            report.out_of_order += offset < last.get(partition, -1)
            last[partition] = offset
    report.lost = sum(1 for key in expected if key not in seen)
    report.duplicated = sum(count - 1 for count in seen.values())
    stored_at.sort()
    for restart in restarts:
        after = next((at for at in stored_at if at > restart + 0.3), None)
        if after is not None:
            report.recovery_s.append(round(after - restart, 3))


async def _partitions(kafka: KafkaConfig, topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in range((await partition_counts(kafka))[topic])]


async def read_all(kafka: KafkaConfig, topic: str) -> AsyncIterator[tuple[int, Any]]:
    """Read a topic from its beginning to its present end: yields (partition, record)."""
    consumer = AIOKafkaConsumer(
        isolation_level="read_committed", enable_auto_commit=False, **client_options(kafka)
    )
    await consumer.start()
    try:
        tps = await _partitions(kafka, topic)
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for tp, records in (await consumer.getmany(*tps, timeout_ms=500)).items():
                for record in records:
                    yield tp.partition, record
    finally:
        await consumer.stop()
