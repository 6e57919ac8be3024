"""Arrow messages of 1,000 readings each: `python -m benchmarks.arrow --runs 3`.

Gateways send many readings in one message; polarstream answers each with one Arrow message of predictions.
There is no peer here: none of them takes such messages without being told how, row by row.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from benchmarks import report
from benchmarks.cluster import Cluster, broker
from benchmarks.contestants import CONTESTANTS, cache_folder
from benchmarks.throughput import Run, Task, add_arguments, chosen, summary, take_turns
from benchmarks.verification import Checker, Verdict
from benchmarks.workload import FIELDS, I64, STREAM, Workload, describe
from streams.arrow import encode_readings


def messages(workload: Workload, size: int) -> list[list[I64]]:
    """For each partition the rows of each of its messages, int64 [size or fewer], in order."""
    return [[rows[i : i + size] for i in range(0, len(rows), size)] for rows in workload.rows_by_offset()]


def records(workload: Workload, size: int) -> Iterator[tuple[int, None, bytes, int]]:
    """The messages as (partition, no key, value, timestamp), partitions in turn."""
    now_ms = int(time.time() * 1000)
    ids = np.array(workload.sensor_ids, object)
    by_partition = messages(workload, size)
    for i in range(max(map(len, by_partition))):
        for partition, mine in enumerate(by_partition):
            if i < len(mine):
                rows = mine[i]
                fields = {name: workload.values[rows, f] for f, name in enumerate(FIELDS)}
                value = encode_readings(ids[workload.sensor[rows]].tolist(), workload.ts[rows], fields)
                yield partition, None, value, now_ms


class ArrowChecker:
    """Holds Arrow messages of predictions against the reference."""

    def __init__(self, source: str, workload: Workload, size: int) -> None:
        self._source = source
        self._rows = messages(workload, size)
        self._workload = workload
        self._checker = Checker(source, workload)
        self._ids = pa.array(workload.sensor_ids)

    def add(self, partition: int, value: bytes, appended_ms: int) -> None:
        """Checks one output message."""
        table = pa.ipc.open_stream(pa.py_buffer(value)).read_all().combine_chunks()
        meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        self._checker.count(1, [appended_ms])
        if meta.get("topic") != self._source or meta.get("stream") != STREAM:
            self._checker.blame("wrong origin", repr(meta))
            return
        row = self._rows[int(meta["partition"])][int(meta["offset"])][table["index"].to_numpy()]
        named = self._ids.take(pa.array(self._workload.sensor[row]))
        if not table["source"].combine_chunks().dictionary_decode().equals(named):
            self._checker.blame("wrong source", repr(meta))
        fields = table["field"].combine_chunks()
        names = [FIELDS.index(name) if name in FIELDS else -1 for name in fields.dictionary.to_pylist()]
        self._checker.check(
            partition,
            row,
            table["ts"].to_numpy(),
            table["score"].to_numpy(),
            np.array(names, np.int64)[fields.indices.to_numpy()],
            table["is_anomaly"].to_numpy(),
            lambda i: f"row {i} of {meta}",
        )

    def verdict(self) -> Verdict:
        """Closes the check."""
        return self._checker.verdict()


async def arrow_task(cluster: Cluster, workload: Workload, size: int) -> Task:
    """Loads a fresh topic with Arrow messages of `size` readings."""
    source = f"bench-arrow-{workload.readings}-{os.getpid()}"
    await cluster.create(source, workload.partitions)
    await cluster.load_records(source, records(workload, size))

    async def judge(cluster: Cluster, topic: str, committed: bool) -> Verdict:
        checker = ArrowChecker(source, workload, size)
        async for partition, found in cluster.read(topic, workload.partitions, committed=committed):
            for record in found:
                checker.add(partition, record.value, record.timestamp)
        return checker.verdict()

    return Task(source, workload, sum(map(len, messages(workload, size))), judge)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arrow", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--peers", default="polarstream", help="or polarstream,polarstream-eo")
    parser.add_argument("--readings", type=int, default=20_000_000, help="(default: %(default)s)")
    parser.add_argument("--size", type=int, default=1000, help="readings a message (default: %(default)s)")
    parser.add_argument("--sensors", type=int, default=1000)
    parser.add_argument(
        "--timeout", type=float, default=300, help="seconds for one run (default: %(default)s)"
    )
    arguments = parser.parse_args()
    contestants = chosen(arguments.peers)
    if any(c.requirements for c in contestants):
        raise SystemExit("error: only polarstream takes Arrow messages")
    cache_folder().mkdir(parents=True, exist_ok=True)

    with broker(arguments.bootstrap) as at:

        async def measure() -> list[Run]:
            cluster = Cluster(at.bootstrap)
            task = await arrow_task(cluster, Workload(arguments.readings, arguments.sensors), arguments.size)
            try:
                return await take_turns(
                    cluster,
                    [(c, task) for c in contestants],
                    runs=arguments.runs,
                    broker_pid=at.pid,
                    timeout_s=arguments.timeout,
                )
            finally:
                await cluster.delete([task.source])

        runs = asyncio.run(measure())
    text, data = summary(runs)
    print(text)
    path = report.save(
        "arrow",
        {
            "workload": describe(arguments.sensors) | {"readings_a_message": arguments.size},
            "medians": data,
            "runs": [asdict(r) for r in runs],
            "versions": {"polarstream": CONTESTANTS["polarstream"].versions()},
        },
    )
    print(f"\nwritten to {path}")
    if not all(r.right for r in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
