"""Many workers of one group, one killed every few seconds: `python -m benchmarks.workers --workers 50`.

Each frame must be answered once, whoever dies: exactly once, read by a reader of committed messages. The
model is tiny, so that what is measured is the moving of partitions, not the computing.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from onnx import TensorProto, helper, numpy_helper

from benchmarks import report
from benchmarks.cluster import Cluster, broker
from benchmarks.contestants import cache_folder
from gpu_inference.models.folder import ModelFolder
from streams.frames import RAW, frame_headers

SIDE = 16

CONFIG = """
app_id = "{name}"
data_dir = "{folder}/data"
streams = []
topics = {{ predictions = "{name}-out", alerts = "{name}-alerts", analytics = "{name}-analytics", \
dead_letter = "{name}-dead", control = "{name}-control", models = "{name}-models" }}
inference = {{ devices = ["cpu"], models_dir = "{folder}/models", decode_threads = 1 }}

[kafka]
bootstrap_servers = ["{bootstrap}"]

[worker]
delivery = "exactly_once"
checkpoint_interval_ms = 500

[[frames]]
name = "many"
topic = "{name}-in"
model = "means"
partitions = {partitions}
"""

MANIFEST = f"""
input.size = [{SIDE}, {SIDE}]
output.task = "classification"
limits.max_batch = 8
"""


def means_model() -> onnx.ModelProto:
    """The mean of each channel."""
    scale = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["y"]),
        ],
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [scale],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


class Workers:
    """The processes of the group."""

    def __init__(self, config: Path, count: int) -> None:
        self.config = config
        self.log = (config.parent / "workers.log").open("wb")
        self.processes = [self._start(number) for number in range(count)]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "POLARSTREAM_WORKER__INSTANCE_ID": f"w{number}",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "polarstream", "worker", "--config", str(self.config)]
        return subprocess.Popen(
            command, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def replace(self, number: int) -> None:
        """Kill one, and start it again."""
        os.killpg(self.processes[number].pid, signal.SIGKILL)
        self.processes[number].wait()
        self.processes[number] = self._start(number)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.log.close()


async def publish(bootstrap: str, topic: str, partitions: int, rate_hz: float, stop: asyncio.Event) -> int:
    """Frames to all partitions in turn until told to stop; returns how many."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True)
    await producer.start()
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    sent, started = 0, time.monotonic()
    try:
        while not stop.is_set():
            while sent < (time.monotonic() - started) * rate_hz:
                pixels[:] = 0
                pixels[..., sent % 3] = 200
                await producer.send(
                    topic,
                    pixels.tobytes(),
                    key=f"camera-{sent % partitions}".encode(),
                    partition=sent % partitions,
                    headers=frame_headers(RAW, 1.7e9 + sent, pixels.shape),
                )
                sent += 1
            await asyncio.sleep(0.02)
        await producer.flush()
    finally:
        await producer.stop()
    return sent


async def collect(bootstrap: str, topic: str, got: collections.Counter[int], wrong: list[Any]) -> None:
    """Count the answers of each frame, until cancelled."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    await consumer.start()
    try:
        async for message in consumer:
            answer = msgspec.json.decode(message.value)
            number = round(answer["ts"] - 1.7e9)
            got[number] += 1
            if answer["label"] != str(number % 3):
                wrong.append(answer)
    finally:
        await consumer.stop()


async def drill(bootstrap: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    name = f"workers-{os.getpid()}"
    cluster = Cluster(bootstrap)
    await cluster.create(f"{name}-in", options.partitions)
    await cluster.create(f"{name}-out", options.partitions)
    onnx.save(means_model(), folder / "means.onnx")
    ModelFolder(folder / "models").add("means", "1", folder / "means.onnx", MANIFEST)
    config = folder / "polarstream.toml"
    config.write_text(
        CONFIG.format(name=name, folder=folder, bootstrap=bootstrap, partitions=options.partitions)
    )
    got: collections.Counter[int] = collections.Counter()
    wrong: list[Any] = []
    reader = asyncio.create_task(collect(bootstrap, f"{name}-out", got, wrong))
    workers = Workers(config, options.workers)
    stop = asyncio.Event()
    random.seed(7)
    try:
        publishing = asyncio.create_task(
            publish(bootstrap, f"{name}-in", options.partitions, options.rate, stop)
        )
        started = time.monotonic()
        while len({n % options.partitions for n in got}) < options.partitions:
            if time.monotonic() - started > options.start_s:
                raise SystemExit(f"not all partitions are served after {options.start_s:.0f} s")
            await asyncio.sleep(0.5)
        ready_s = time.monotonic() - started
        print(f"all {options.partitions} partitions are served after {ready_s:.0f} s", flush=True)
        kills = 0
        while kills * options.every < options.seconds:
            await asyncio.sleep(options.every)
            await asyncio.to_thread(workers.replace, random.randrange(options.workers))
            kills += 1
        stop.set()
        sent = await publishing
        quiet = time.monotonic()
        while len(got) < sent and time.monotonic() - quiet < options.start_s:
            await asyncio.sleep(0.5)
        await asyncio.sleep(5)
    finally:
        workers.end()
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
    return {
        "workers": options.workers,
        "kills": kills,
        "frames": sent,
        "ready_s": ready_s,
        "lost": sent - len(got),
        "doubled": sum(count - 1 for count in got.values()),
        "wrong": len(wrong),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=50)
    parser.add_argument("--partitions", type=int, default=50)
    parser.add_argument("--every", type=float, default=5, help="seconds between kills")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--rate", type=float, default=200, help="frames a second")
    parser.add_argument("--start-s", type=float, default=300, help="for all partitions to be served")
    parser.add_argument("--bootstrap")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder, broker(options.bootstrap) as at:
        told = asyncio.run(drill(at.bootstrap, Path(folder), options))
    print(", ".join(f"{key} {value:.0f}" for key, value in told.items()))
    report.save("workers", told)
    if told["lost"] or told["doubled"] or told["wrong"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
