"""Request to answer at a steady pace: `python -m benchmarks.requests --rate 500 --seconds 20 --runs 3`.

First a `floor`: what was written is read by who wrote it, at the same pace, without a worker; a request takes
that way twice. Then one client asks one worker about vectors of 128 numbers; the model is a perceptron of 1.2
million weights. The pace is a schedule that never waits for answers, and a request counts from its place in
the schedule. Every answer is held against NumPy's.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks import report
from benchmarks.cluster import broker, cache_folder
from benchmarks.process import Measured, Usage
from connectors.client import InferenceClient
from connectors.errors import NoAnswer
from streams.config import KafkaConfig
from streams.kafka import client_options

SIZES = (128, 1024, 1024, 16)

CONFIG = """
app_id = "{name}"
topics.predictions = "{name}-predictions"
topics.alerts = "{name}-alerts"
topics.analytics = "{name}-analytics"
topics.dead_letter = "{name}-dead"
topics.control = "{name}-control"
topics.models = "{name}-models"
kafka.bootstrap_servers = ["{bootstrap}"]
data_dir = "{folder}"
inference.devices = [{devices}]
worker.delivery = "{delivery}"

[requests]
enabled = true
topic = "{name}-requests"
results_topic = "{name}-results"
models = ["perceptron"]
partitions = {partitions}
linger_ms = {linger_ms}
"""

MANIFEST = """
input = {{kind = "tensor", shape = [128]}}
output.task = "raw"
limits.max_delay_ms = {delay_ms}
"""


@dataclass
class RequestRun:
    """One run; latencies and compute in ms."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    compute_p50_ms: float
    compute_p95_ms: float
    above_compute_p95_ms: float
    floor_p50_ms: float
    floor_p95_ms: float
    client_late_p95_ms: float
    batch_mean: float
    cpu_percent: float
    client_cpu_percent: float
    broker_cpu_percent: float
    other_cores: float
    statuses: dict[str, int]
    wrong: int

    @property
    def right(self) -> bool:
        """Every request has its answer, and the right one."""
        return set(self.statuses) == {"ok"} and not self.wrong


def weights() -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(a, b)) / np.sqrt(a)).astype(np.float32) for a, b in itertools.pairwise(SIZES)]


def add_model(folder: Path, delay_ms: float) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from gpu_inference.models.folder import ModelFolder

    nodes, last = [], "x"
    layers = weights()
    for i in range(len(layers)):
        end = i == len(layers) - 1
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], ["y" if end else f"m{i}"]))
        if not end:
            nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"]))
        last = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZES[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZES[-1]])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(layers)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    folder.mkdir(parents=True)
    onnx.save(model, folder.parent / "perceptron.onnx")
    ModelFolder(folder).add(
        "perceptron", "1", folder.parent / "perceptron.onnx", MANIFEST.format(delay_ms=delay_ms)
    )


async def run_once(bootstrap: str, broker_pid: int | None, arguments: argparse.Namespace) -> RequestRun:
    """Starts a worker on empty topics and asks it."""
    name = f"bench-requests-{os.getpid()}-{time.monotonic_ns() // 1_000_000}"
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=cache_folder()))
    devices = ", ".join(f'"{device}"' for device in arguments.devices.split(","))
    (folder / "polarstream.toml").write_text(
        CONFIG.format(
            name=name,
            bootstrap=bootstrap,
            folder=folder / "data",
            devices=devices,
            delivery="exactly_once" if arguments.exactly_once else "at_least_once",
            partitions=arguments.partitions,
            linger_ms=arguments.linger,
        )
    )
    add_model(folder / "data" / "models", arguments.delay)
    command = [sys.executable, "-m", "polarstream", "worker"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    try:
        with Measured(command, environment=environment, folder=folder, broker_pid=broker_pid) as process:
            try:
                return await _ask(KafkaConfig(bootstrap_servers=[bootstrap]), name, process, arguments)
            except NoAnswer:
                print(process.log_tail(), file=sys.stderr)
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _client(kafka: KafkaConfig, name: str) -> InferenceClient:
    from streams.errors import UsageError

    for _ in range(150):
        client = InferenceClient(kafka, f"{name}-requests", f"{name}-results")
        try:
            await client.start()
            return client
        except UsageError:  # the worker has not made its topics yet
            await asyncio.sleep(0.2)
    raise SystemExit("error: the worker made no topics within 30 s")


async def _floor(kafka: KafkaConfig, topic: str, rate: float, seconds: float) -> np.ndarray[Any, Any]:
    """Milliseconds from the schedule of a message to its being read by who wrote it."""
    options = client_options(kafka)
    producer = AIOKafkaProducer(**options, enable_idempotence=True, linger_ms=0)
    consumer = AIOKafkaConsumer(**options, enable_auto_commit=False, isolation_level="read_committed")
    await producer.start()
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    await consumer.seek_to_end()
    await consumer.position(TopicPartition(topic, 0))
    loop = asyncio.get_running_loop()
    start, count = loop.time() + 0.1, round(rate * seconds)
    taken: list[float] = []

    async def read() -> None:
        while len(taken) < count:
            for messages in (await consumer.getmany(timeout_ms=1000)).values():
                taken.extend(loop.time() - start - int(message.key) / rate for message in messages)

    try:
        reading = asyncio.create_task(read())
        for at in range(count):
            due = start + at / rate
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            await producer.send(topic, bytes(400), key=str(at).encode(), partition=0)
        await asyncio.wait_for(reading, 30)
    finally:
        await producer.stop()
        await consumer.stop()
    return np.array(taken)[count // 4 :] * 1000


async def _ask(kafka: KafkaConfig, name: str, process: Measured, arguments: argparse.Namespace) -> RequestRun:
    vectors = np.random.default_rng(1).normal(size=(256, SIZES[0])).astype(np.float32)
    wanted = vectors
    for i, layer in enumerate(weights()):
        wanted = wanted @ layer
        if i < len(SIZES) - 2:
            wanted = np.maximum(wanted, 0)
    client = await _client(kafka, name)
    loop = asyncio.get_running_loop()
    usages: list[Usage] = []
    rows: list[tuple[float, float, float, int]] = []
    statuses: Counter[str] = Counter()
    wrong = 0
    floor = await _floor(kafka, f"{name}-results", arguments.rate, arguments.warm)
    first = round(arguments.warm * arguments.rate)
    count = first + round(arguments.seconds * arguments.rate)

    async def one(at: int, due: float) -> None:
        nonlocal wrong
        sent = loop.time()
        result = await client.result(await client.submit("perceptron", vectors[at % 256], 20))
        done = loop.time()
        if at < first:
            return
        statuses[result.status] += 1
        if result.status == "ok":
            rows.append((done - due, sent - due, result.compute_ms, result.batch))
            wrong += not np.allclose(result.arrays()["y"], wanted[at % 256], rtol=1e-3, atol=1e-4)

    try:
        await client.ask("perceptron", vectors[0], 60)
        tasks = []
        start = loop.time() + 0.1
        for at in range(count):
            due = start + at / arguments.rate
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            if at == first:
                usages.append(process.usage())
            tasks.append(asyncio.create_task(one(at, due)))
        usages.append(process.usage())
        await asyncio.gather(*tasks)
    finally:
        await client.stop()
    before, after = usages
    wall = after.at - before.at
    cpu, broker_cpu, mine, machine = (
        (getattr(after, part) - getattr(before, part)) / wall
        for part in ("cpu_s", "broker_cpu_s", "harness_cpu_s", "machine_cpu_s")
    )
    latency, late, compute, batch = np.array(rows).T
    p50, p95, p99 = np.percentile(latency * 1000, [50, 95, 99])
    compute_p50, compute_p95 = np.percentile(compute, [50, 95])
    return RequestRun(
        p50,
        p95,
        p99,
        latency.max() * 1000,
        compute_p50,
        compute_p95,
        p95 - compute_p95,
        *np.percentile(floor, [50, 95]).tolist(),
        float(np.percentile(late * 1000, 95)),
        float(batch.mean()),
        100 * cpu,
        100 * mine,
        100 * broker_cpu,
        max(0.0, machine - cpu - mine - (broker_cpu if broker_cpu == broker_cpu else 0.0)),
        dict(statuses),
        wrong,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requests", description=__doc__)
    parser.add_argument("--bootstrap", help="a broker; without it a fresh local one")
    parser.add_argument("--rate", type=float, default=500, help="requests/s (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="measured (default: %(default)s)")
    parser.add_argument("--warm", type=float, default=5, help="seconds before that (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=4, help="of the topic of requests")
    parser.add_argument("--linger", type=float, default=2.0, help="requests.linger_ms")
    parser.add_argument("--delay", type=float, default=1.0, help="limits.max_delay_ms of the model")
    parser.add_argument("--devices", default="cpu", help="inference.devices, comma-separated")
    parser.add_argument("--exactly-once", action="store_true")
    arguments = parser.parse_args()
    runs = []
    with broker(arguments.bootstrap) as at:
        for _ in range(arguments.runs):
            run = asyncio.run(run_once(at.bootstrap, at.pid, arguments))
            runs.append(run)
            print(_row(run), flush=True)
    path = report.save("requests", {**vars(arguments), "runs": [asdict(run) for run in runs]})
    print(f"\nwritten to {path}")
    if not all(run.right for run in runs):
        raise SystemExit(1)


def _row(run: RequestRun) -> str:
    return (
        f"p50 {run.p50_ms:.1f}  p95 {run.p95_ms:.1f}  p99 {run.p99_ms:.1f}  max {run.max_ms:.0f} ms; "
        f"compute p50 {run.compute_p50_ms:.2f}  p95 {run.compute_p95_ms:.2f} ms; "
        f"p95 above compute {run.above_compute_p95_ms:.1f} ms; "
        f"floor p50 {run.floor_p50_ms:.1f}  p95 {run.floor_p95_ms:.1f} ms; "
        f"client late p95 {run.client_late_p95_ms:.1f} ms; "
        f"batch {run.batch_mean:.1f}; CPU worker {run.cpu_percent:.0f}% client {run.client_cpu_percent:.0f}% "
        f"broker {run.broker_cpu_percent:.0f}% others {run.other_cores:.1f} cores; "
        f"{run.statuses}{' WRONG' if not run.right else ''}"
    )


if __name__ == "__main__":
    main()
