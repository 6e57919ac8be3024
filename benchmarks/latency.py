"""Publish to prediction read at a steady pace: `python -m benchmarks.latency --rate 2000 --runs 3`.

Also what the broker itself takes (`floor`: the probe reads the readings that it published), and how much of a
core each worker needs. Contestants take turns, so that all of them see the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.cluster import Broker, Cluster, broker
from benchmarks.contestants import CONTESTANTS, Contestant, Job, cache_folder
from benchmarks.process import Measured, Usage
from benchmarks.throughput import add_arguments, chosen

_PROBE = Path(__file__).parent / "peers" / "probe.py"
_PARTITIONS = 4
FLOOR = "floor"


@dataclass
class LatencyRun:
    """One run: milliseconds from publish to read, and the worker's CPU as a share of one core."""

    contestant: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    cpu_percent: float
    broker_cpu_percent: float
    other_cores: float
    peak_rss_mb: float
    lateness_p99_ms: float
    sent: int
    received: int

    @property
    def right(self) -> bool:
        """Every reading came back once."""
        return self.sent == self.received


async def run_once(
    cluster: Cluster,
    contestant: Contestant | None,
    *,
    broker_pid: int | None,
    rate: float,
    warm_s: float,
    seconds: float,
    sensors: int,
) -> LatencyRun:
    """Starts the contestant on an empty topic and probes it; None: the broker alone."""
    label = contestant.name if contestant else FLOOR
    name = f"bench-{label}-{os.getpid()}-{time.monotonic_ns() // 1_000_000}"
    source, target = f"{name}-in", f"{name}-out"
    for topic in (source, target):
        await cluster.create(topic, _PARTITIONS)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=cache_folder()))
    idle = [sys.executable, "-c", "import time; time.sleep(3600)"]
    try:
        job = Job(cluster.bootstrap, source, target, name, folder, _PARTITIONS)
        with Measured(
            contestant.command(job) if contestant else idle,
            environment=contestant.process_environment(job) if contestant else dict(os.environ),
            folder=folder,
            broker_pid=broker_pid,
        ) as process:
            arguments = [
                cluster.bootstrap,
                source,
                target if contestant else source,
                str(rate),
                str(warm_s),
                str(seconds),
                str(sensors),
                "read_committed" if contestant and contestant.committed else "read_uncommitted",
            ]
            before, after, result, probe_cpu = await _probe(process, arguments)
            peak = process.peak_rss_bytes
            if result is None:
                print(f"{label} failed:\n{process.log_tail()}", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        await cluster.delete(t for t in await cluster.topics() if name in t)
    if result is None:
        raise SystemExit(f"error: the probe of {label} gave no result")
    wall = after.at - before.at
    cpu = (after.cpu_s - before.cpu_s) / wall
    broker_cpu = (after.broker_cpu_s - before.broker_cpu_s) / wall
    mine = (after.harness_cpu_s - before.harness_cpu_s) / wall + probe_cpu / wall
    machine = (after.machine_cpu_s - before.machine_cpu_s) / wall
    other = machine - cpu - mine - (broker_cpu if broker_cpu == broker_cpu else 0.0)
    return LatencyRun(
        label,
        result["ms"]["p50"],
        result["ms"]["p95"],
        result["ms"]["p99"],
        result["ms"]["max"],
        100.0 * cpu if contestant else 0.0,
        100.0 * broker_cpu,
        max(0.0, other),
        peak / 1e6,
        result["lateness_p99_ms"],
        result["sent"],
        result["received"],
    )


async def _probe(
    process: Measured, arguments: Sequence[str]
) -> tuple[Usage, Usage, dict[str, Any] | None, float]:
    """Runs the probe; usages at both ends of the measured span, its result, and its own CPU seconds there."""
    import psutil

    probe = await asyncio.create_subprocess_exec(
        str(CONTESTANTS["confluent"].python()), str(_PROBE), *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert probe.stdout is not None
    before = after = process.usage()
    cpu = [0.0, 0.0]
    result = None
    try:
        async for line in probe.stdout:
            told = json.loads(line)
            if told["event"] == "done":
                result = told
                continue
            times = psutil.Process(probe.pid).cpu_times()
            if told["event"] == "measuring":
                before, cpu[0] = process.usage(), times.user + times.system
            else:
                after, cpu[1] = process.usage(), times.user + times.system
        await probe.wait()
    finally:
        if probe.returncode is None:
            probe.kill()
            await probe.wait()
    return before, after, result, cpu[1] - cpu[0]


async def measure(
    at: Broker,
    contestants: Sequence[Contestant | None],
    *,
    runs: int,
    rate: float,
    warm_s: float,
    seconds: float,
    sensors: int,
) -> list[LatencyRun]:
    """`runs` runs of each, in turn."""
    cluster = Cluster(at.bootstrap)
    results = []
    for number in range(runs):
        for contestant in contestants:
            run = await run_once(
                cluster,
                contestant,
                broker_pid=at.pid,
                rate=rate,
                warm_s=warm_s,
                seconds=seconds,
                sensors=sensors,
            )
            results.append(run)
            print(
                f"run {number + 1} {run.contestant}: p50 {run.p50_ms:.1f}, p95 {run.p95_ms:.1f}, p99"
                f" {run.p99_ms:.1f} ms, {run.cpu_percent:.0f}% of a core, others' CPU"
                f" {run.other_cores:.2f} cores, {run.received} of {run.sent} came back",
                file=sys.stderr,
            )
    return results


def summary(runs: Sequence[LatencyRun]) -> tuple[str, list[dict[str, Any]]]:
    """The table of medians, and the same as data."""
    keys = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "cpu_percent", "peak_rss_mb", "other_cores")
    rows, data = [], []
    for name in dict.fromkeys(r.contestant for r in runs):
        mine = [r for r in runs if r.contestant == name]
        m = {key: report.median([float(getattr(r, key)) for r in mine]) for key in keys}
        right = all(r.right for r in mine)
        title = CONTESTANTS[name].title if name in CONTESTANTS else "broker alone"
        rows.append(
            [
                title,
                f"{m['p50_ms']:.1f}",
                f"{m['p95_ms']:.1f}",
                f"{m['p99_ms']:.1f}",
                f"{m['max_ms']:.0f}",
                f"{m['cpu_percent']:.0f}%",
                f"{m['peak_rss_mb']:.0f}" if name != FLOOR else "",
                "all" if right else "LOST OR TWICE",
            ]
        )
        data.append({"contestant": name, "runs": len(mine), "right": right, **m})
    headings = ["contestant", "p50 ms", "p95 ms", "p99 ms", "max ms", "CPU of a core", "peak MB", "came back"]
    return report.table(headings, rows), data


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--peers",
        default="floor,polarstream,confluent,polarstream-eo",
        help="comma-separated, `floor` is the broker alone (default: %(default)s)",
    )
    parser.add_argument("--rate", type=float, default=2000, help="readings/s (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="measured (default: %(default)s)")
    parser.add_argument("--warm", type=float, default=5, help="seconds before that (default: %(default)s)")
    parser.add_argument("--sensors", type=int, default=1000)
    arguments = parser.parse_args()
    contestants = [None if n == FLOOR else chosen(n)[0] for n in arguments.peers.split(",")]
    cache_folder().mkdir(parents=True, exist_ok=True)
    for contestant in {c.name: c for c in [CONTESTANTS["confluent"], *filter(None, contestants)]}.values():
        contestant.install()
    with broker(arguments.bootstrap) as at:
        runs = asyncio.run(
            measure(
                at,
                contestants,
                runs=arguments.runs,
                rate=arguments.rate,
                warm_s=arguments.warm,
                seconds=arguments.seconds,
                sensors=arguments.sensors,
            )
        )
    text, data = summary(runs)
    print(text)
    path = report.save(
        "latency",
        {
            "rate": arguments.rate,
            "seconds": arguments.seconds,
            "sensors": arguments.sensors,
            "medians": data,
            "runs": [asdict(r) for r in runs],
            "versions": {c.name: c.versions() for c in contestants if c is not None},
        },
    )
    print(f"\nwritten to {path}")
    if not all(r.right for r in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
