"""Microseconds a reading of each step, on one core and without Kafka: `python -m benchmarks.micro`.

Steps are timed one by one over the same chunks, as a worker calls them. The median of the repeats counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch

from agents.detect import DetectPartition, StreamDetector
from anomaly.verdict import judge
from benchmarks import report
from benchmarks.workload import ALPHA, FIELDS, STREAM, THRESHOLD, WARMUP, Workload
from streams.codecs import ReadingCodec
from streams.config import FieldConfig, StreamConfig
from streams.records import Chunk

_TOPIC = "bench"


def stream_config() -> StreamConfig:
    """The stream of the throughput benchmark."""
    detector = {"type": "ewz", "alpha": ALPHA, "warmup": WARMUP, "threshold": THRESHOLD}
    return StreamConfig(
        name=STREAM, topic=_TOPIC, fields={name: FieldConfig() for name in FIELDS}, detector=detector
    )


def chunks(workload: Workload, size: int) -> list[Chunk]:
    """The readings of partition 0 in chunks of `size`, as the transport hands them on."""
    mine = [(key, value) for p, key, value in workload.payloads(0, workload.readings) if p == 0]
    now_ms = int(time.time() * 1000)
    made = []
    for start in range(0, len(mine) - size + 1, size):
        part = mine[start : start + size]
        offsets = list(range(start, start + size))
        made.append(
            Chunk(
                _TOPIC,
                0,
                offsets[0],
                offsets[-1],
                offsets,
                [now_ms] * size,
                [key for key, _ in part],
                [value for _, value in part],
            )
        )
    return made


def record_batches(given: list[Chunk], limit: int = 16_384) -> list[bytes]:
    """The chunks' messages as Kafka record batches of 16 KiB, as a producer makes them by default."""
    made, builder = [], None
    for chunk in given:
        for key, value, timestamp in zip(chunk.keys, chunk.values, chunk.timestamps_ms, strict=True):
            if builder is None or builder.append(timestamp=timestamp, key=key, value=value) is None:
                if builder is not None:
                    made.append(_closed(builder))
                builder = BatchBuilder(limit, 0)
                builder.append(timestamp=timestamp, key=key, value=value)
    if builder is not None:
        made.append(_closed(builder))
    return made


def _closed(builder: BatchBuilder) -> bytes:
    return bytes(builder._build())


def timed(repeats: int, count: int, once: Callable[[], None]) -> float:
    """Median microseconds for each of `count` things that `once` handles."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        once()
        times.append((time.perf_counter() - start) / count * 1e6)
    return report.median(times)


def steps(workload: Workload, size: int, repeats: int) -> dict[str, float]:
    """µs a reading of each step with chunks of `size`."""
    config = stream_config()
    given = chunks(workload, size)
    n = size * len(given)
    now = time.time()
    codec = ReadingCodec(config)
    batches = [codec.decode(chunk, now) for chunk in given]
    result = {}

    logs = record_batches(given)

    def read() -> None:
        for log in logs:
            for record in DefaultRecordBatch(log):
                record.key, record.value  # noqa: B018

    result["read record batches"] = timed(repeats, n, read)

    def decode() -> None:
        for chunk in given:
            codec.decode(chunk, now)

    result["decode to columns"] = timed(repeats, n, decode)

    shared = StreamDetector(config)
    state = shared.new_state()
    rows = [state.locate(batch.sensor_ids) for batch in batches]

    def locate() -> None:
        for batch in batches:
            state.locate(batch.sensor_ids)

    result["sensor to row"] = timed(repeats, n, locate)

    def score() -> None:
        for batch, where in zip(batches, rows, strict=True):
            shared.detector.examine(state.rows["detector"], where, batch.values, batch.ts)

    result["score"] = timed(repeats, n, score)
    scored = [
        judge(
            shared.detector.examine(state.rows["detector"], where, batch.values, batch.ts)[0],
            shared.detector.thresholds,
        )
        for batch, where in zip(batches, rows, strict=True)
    ]

    def alerts() -> None:
        for batch, where, verdict in zip(batches, rows, scored, strict=True):
            shared.alerts.update(state.rows["alerts"], where, batch.values, batch.ts, verdict)

    result["alerts"] = timed(repeats, n, alerts)

    def encode() -> None:
        for batch, verdict in zip(batches, scored, strict=True):
            shared.encoder.encode(batch, None, verdict.score, verdict.field, verdict.is_anomaly, now)

    result["encode predictions"] = timed(repeats, n, encode)

    outputs = [
        shared.encoder.encode(batch, None, v.score, v.field, v.is_anomaly, now)
        for batch, v in zip(batches, scored, strict=True)
    ]
    now_ms = int(now * 1000)

    def append() -> None:
        for chunk, values in zip(given, outputs, strict=True):
            builder = BatchBuilder(1 << 24, 0)
            for key, value in zip(chunk.keys, values, strict=True):
                builder.append(timestamp=now_ms, key=key, value=value)
            _closed(builder)

    result["append to record batches"] = timed(repeats, n, append)

    def agent() -> None:
        partition = DetectPartition(shared, {})
        for batch in batches:
            partition.process(batch, now)

    result["agent as a whole (score to encode)"] = timed(repeats, n, agent)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro", description=__doc__)
    parser.add_argument("--sizes", default="1,20,200,2000,8192", help="chunk sizes (default: %(default)s)")
    parser.add_argument("--readings", type=int, default=200_000, help="of 4 partitions, one is used")
    parser.add_argument("--sensors", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    np.seterr(all="raise", under="ignore")
    results = {}
    for size in sizes:
        # small chunks are slow a reading, so fewer readings tell as much
        n = min(arguments.readings, max(4 * 4 * size, 40_000))
        results[size] = steps(Workload(n, arguments.sensors), size, arguments.repeats)
    names = list(results[sizes[0]])
    print("µs a reading, by readings a chunk")
    print(
        report.table(
            ["step", *(f"{size:,}" for size in sizes)],
            [[name, *(f"{results[size][name]:.2f}" for size in sizes)] for name in names],
        )
    )
    path = report.save(
        "micro", {"sensors": arguments.sensors, "us_a_reading": {str(s): r for s, r in results.items()}}
    )
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
