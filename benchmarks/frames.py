"""Frames a second through a worker, beside a bare loop: `python -m benchmarks.frames`.

Kafka in, JPEG decoded, a network run on the CPU, predictions out. The bare loop is what one would write for
the same pictures without Kafka: decode with simplejpeg on as many threads, normalise with NumPy, batches of
`--batch` through onnxruntime, top-5. Both take turns, medians count.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer

from benchmarks import report
from benchmarks.cluster import Broker, Cluster, broker
from benchmarks.contestants import cache_folder
from benchmarks.process import Measured
from gpu_inference import standard_models
from gpu_inference.models.folder import ModelFolder
from streams.frames import JPEG, frame_headers

PARTITIONS = 4
CAMERAS = 8
SIDE = 224

MANIFEST = """
input.size = [224, 224]
input.mean = [0.5, 0.5, 0.5]
input.std = [0.5, 0.5, 0.5]
output.task = "classification"
limits.max_batch = {batch}
limits.max_delay_ms = 20
"""

CONFIG = """
app_id = "{name}"
data_dir = "{folder}/data"
streams = []
topics = {{ predictions = "{name}-out", alerts = "{name}-alerts", analytics = "{name}-analytics", \
dead_letter = "{name}-dead", control = "{name}-control", models = "{name}-models" }}
inference = {{ devices = ["cpu"], models_dir = "{models}" }}

[kafka]
bootstrap_servers = ["{bootstrap}"]

[[frames]]
name = "bench"
topic = "{source}"
model = "network"
partitions = {partitions}
"""


def pictures(count: int, width: int, height: int) -> list[bytes]:
    """JPEGs of smooth scenes with noise, some 60 KB each at 640 x 480."""
    from PIL import Image

    rng = np.random.default_rng(7)
    made = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
        scene = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(scene + rng.normal(0, 6, scene.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=85)
        made.append(file.getvalue())
    return made


def bare(model: Path, files: list[bytes], frames: int, batch: int) -> float:
    """Frames/s of a loop without Kafka, in a process of its own."""
    job = {"model": str(model), "frames": frames, "batch": batch}
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(files):
            (Path(folder) / f"{number}.jpg").write_bytes(data)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.frames", "--bare", json.dumps({**job, "folder": folder})],
            capture_output=True,
            text=True,
            check=True,
        )
    return float(done.stdout.split()[-1])


def bare_loop(job: dict[str, Any]) -> float:
    """What `bare` runs: decode the next batch on threads while this one is computed."""
    import onnxruntime
    import simplejpeg
    from PIL import Image

    files = [path.read_bytes() for path in sorted(Path(job["folder"]).iterdir())]
    session = onnxruntime.InferenceSession(job["model"], providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    batch, frames = job["batch"], job["frames"]
    threads = ThreadPoolExecutor(os.cpu_count())

    def prepare(row: np.ndarray, data: bytes) -> None:
        image = simplejpeg.decode_jpeg(data, "RGB", min_height=SIDE, min_width=SIDE, min_factor=2)
        h, w = image.shape[:2]
        side = min(h, w)
        top, left = (h - side) // 2, (w - side) // 2
        square = Image.fromarray(image[top : top + side, left : left + side])
        small = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
        row[:] = ((small * np.float32(1 / 255) - np.float32(0.5)) * np.float32(2)).transpose(2, 0, 1)

    def stage(start: int) -> tuple[np.ndarray, list[Any]]:
        rows = np.empty((min(batch, frames - start), 3, SIDE, SIDE), np.float32)
        return rows, [
            threads.submit(prepare, row, files[(start + i) % len(files)]) for i, row in enumerate(rows)
        ]

    session.run(None, {name: np.zeros((batch, 3, SIDE, SIDE), np.float32)})
    started, answered = time.perf_counter(), 0
    coming = stage(0)
    while answered < frames:
        rows, jobs = coming
        if answered + len(rows) < frames:
            coming = stage(answered + len(rows))
        for one in jobs:
            one.result()
        (scores,) = session.run(None, {name: rows})
        top = np.argsort(-scores, axis=1)[:, :5]
        answered += len(top)
    return frames / (time.perf_counter() - started)


async def load(bootstrap: str, topic: str, files: list[bytes], frames: int) -> None:
    """Fill the topic before the worker starts."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=8 << 20, max_batch_size=900_000)
    await producer.start()
    try:
        for n in range(frames):
            camera = n % CAMERAS
            await producer.send(
                topic,
                files[n % len(files)],
                key=f"camera-{camera}".encode(),
                partition=camera % PARTITIONS,
                headers=frame_headers(JPEG, 1.7e9 + n),
            )
        await producer.flush()
    finally:
        await producer.stop()


async def through_worker(at: Broker, models: Path, files: list[bytes], frames: int) -> dict[str, float]:
    """Frames/s of a worker on a full topic, from 20% of its predictions to the last, and its CPU."""
    cluster = Cluster(at.bootstrap)
    name = f"frames-{os.getpid()}-{time.monotonic_ns()}"
    source, target = f"{name}-in", f"{name}-out"
    await cluster.create(source, PARTITIONS)
    await cluster.create(target, PARTITIONS, configs={"message.timestamp.type": "LogAppendTime"})
    await load(at.bootstrap, source, files, frames)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=cache_folder()))
    config = folder / "polarstream.toml"
    config.write_text(
        CONFIG.format(
            name=name,
            folder=folder,
            models=models,
            bootstrap=at.bootstrap,
            source=source,
            partitions=PARTITIONS,
        )
    )
    command = [sys.executable, "-m", "polarstream", "worker", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with Measured(command, environment=environment, folder=folder, broker_pid=at.pid) as process:
        counts: list[tuple[float, int, float]] = []
        async with cluster.ends(target, PARTITIONS) as ends:
            while not counts or counts[-1][1] < frames:
                if process.exited is not None or time.time() - process.started_s > 300:
                    raise SystemExit(f"the worker ended or stood still:\n{process.log_tail()}")
                await asyncio.sleep(0.05)
                counts.append((time.monotonic(), await ends.total(), process.usage().cpu_s))
        peak = process.peak_rss_bytes / 1e6
    begun = next(c for c in counts if c[1] >= 0.2 * frames)
    ended = next(c for c in counts if c[1] >= frames)
    rate = (ended[1] - begun[1]) / (ended[0] - begun[0])
    cores = (ended[2] - begun[2]) / (ended[0] - begun[0])
    return {"frames_s": rate, "cores": cores, "peak_rss_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--model", type=Path, help="an .onnx file (default: MobileNetV2)")
    parser.add_argument("--bootstrap")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(bare_loop(json.loads(options.bare)))
        return
    files = pictures(40, options.width, options.height)
    kilobytes = sum(map(len, files)) / len(files) / 1e3
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder, broker(options.bootstrap) as at:
        model = options.model
        if model is None:
            model = Path(folder) / "network.onnx"
            model.write_bytes(standard_models.mobilenet_v2(SIDE))
        models = Path(folder) / "models"
        ModelFolder(models).add("network", "1", model, MANIFEST.format(batch=options.batch))
        ours, theirs = [], []
        for run in range(options.runs):
            theirs.append(bare(model, files, options.frames, options.batch))
            ours.append(asyncio.run(through_worker(at, models, files, options.frames)))
            print(
                f"run {run + 1}: worker {ours[-1]['frames_s']:.1f} frames/s, {ours[-1]['cores']:.2f} cores, "
                f"{ours[-1]['peak_rss_mb']:.0f} MB; bare loop {theirs[-1]:.1f}",
                flush=True,
            )
    rate, other = statistics.median(one["frames_s"] for one in ours), statistics.median(theirs)
    print(
        f"{options.width} x {options.height} JPEGs of {kilobytes:.0f} KB, batches of {options.batch}, "
        f"{os.cpu_count()} cores"
    )
    print(f"worker {rate:.1f} frames/s, bare loop {other:.1f}: {rate / other:.2f} times")
    settings = {key: str(value) for key, value in vars(options).items()}
    report.save("frames", {"worker": ours, "bare": theirs, "ratio": rate / other, "options": settings})


if __name__ == "__main__":
    main()
