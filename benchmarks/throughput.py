"""Readings a second, side by side: `python -m benchmarks.throughput --peers polarstream,confluent --runs 3`.

Every contestant reads a topic that is full when it starts, from its beginning, and writes one prediction for
each reading. Rates come from the times at which the broker appended the outputs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import report
from benchmarks.cluster import Broker, Cluster, broker
from benchmarks.contestants import CONTESTANTS, Contestant, Job, cache_folder
from benchmarks.process import Measured, Usage
from benchmarks.verification import Verdict, verify
from benchmarks.workload import Workload, describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

_POLL_S = 0.25
_SETTLE_S = 1.0
_STALL_S = 60.0


@dataclass
class Run:
    """One run of one contestant.

    Attributes:
        whole_rate: readings/s from the start of the process to the last output.
        steady_rate: readings/s between the output at 20% and the last one.
        first_output_s: seconds from the start of the process to its first output.
        cpu_s: CPU seconds of the contestant up to its last output.
        cpu_us_per_reading: the same for each reading.
        broker_cpu_s: of the broker meanwhile.
        other_cores: cores kept busy by neither contestant, broker nor harness; above 0.1 the run is suspect.
        verdict: `ok`, or what is wrong with the outputs.
    """

    contestant: str
    readings: int
    whole_rate: float
    steady_rate: float
    first_output_s: float
    cpu_s: float
    cpu_us_per_reading: float
    broker_cpu_s: float
    other_cores: float
    peak_rss_mb: float
    outputs: int
    right: bool
    verdict: str


@dataclass(frozen=True)
class Task:
    """What every contestant is given: a full topic, and how its outputs are judged.

    Attributes:
        outputs: messages that the output topic holds in the end.
        judge: reads the outputs of a topic (committed ones only, if the flag is set).
    """

    source: str
    workload: Workload
    outputs: int
    judge: Callable[[Cluster, str, bool], Awaitable[Verdict]]


async def json_task(cluster: Cluster, workload: Workload, detector: Mapping[str, Any] | None = None) -> Task:
    """Loads a fresh topic with one JSON message a reading."""
    of = "" if detector is None else f"-{detector['type']}"
    source = f"bench-in-{workload.readings}-{workload.sensors}-{os.getpid()}{of}"
    await cluster.create(source, workload.partitions)
    await cluster.load(source, workload)

    async def judge(cluster: Cluster, topic: str, committed: bool) -> Verdict:
        return await verify(cluster, topic, source, workload, committed=committed, detector=detector)

    return Task(source, workload, workload.readings, judge)


def rates(verdict: Verdict, readings: int, started_s: float) -> tuple[float, float, float]:
    """(whole rate, steady rate, seconds to the first output) from the append times.

    An output stands for one reading, or for as many as it holds where outputs are batches.
    """
    t = verdict.appended_ms / 1000.0
    if len(t) < 2:
        return 0.0, 0.0, float("nan")
    from_output = int(0.2 * len(t))
    steady_s = float(t[-1] - t[from_output])
    each = readings / len(t)
    steady = each * (len(t) - 1 - from_output) / steady_s if steady_s > 0 else float("nan")
    return readings / float(t[-1] - started_s), steady, float(t[0] - started_s)


async def run_once(
    cluster: Cluster, task: Task, contestant: Contestant, *, broker_pid: int | None, timeout_s: float
) -> Run:
    """Starts the contestant on a full topic, waits for its last output, stops it and checks what it wrote."""
    name = f"bench-{contestant.name}-{os.getpid()}-{time.monotonic_ns() // 1_000_000}"
    target, workload = f"{name}-out", task.workload
    await cluster.create(target, workload.partitions, configs={"message.timestamp.type": "LogAppendTime"})
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=cache_folder()))
    try:
        job = Job(cluster.bootstrap, task.source, target, name, folder, workload.partitions)
        with Measured(
            contestant.command(job),
            environment=contestant.process_environment(job),
            folder=folder,
            broker_pid=broker_pid,
        ) as process:
            last = await _until_done(cluster, process, target, task, timeout_s, contestant.committed)
            log = process.log_tail()
            died = process.exited
        if died is not None:
            print(f"{contestant.name} ended with status {died}:\n{log}", file=sys.stderr)
        verdict = await task.judge(cluster, target, contestant.committed)
        if not verdict.right:
            print(f"{contestant.name}: {verdict.summary()}\n{log}", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        await cluster.delete(t for t in await cluster.topics() if name in t)
    whole, steady, first = rates(verdict, workload.readings, process.started_s)
    wall = last.at - process.first.at
    ours = (last.cpu_s - process.first.cpu_s) + (last.harness_cpu_s - process.first.harness_cpu_s)
    broker_cpu = last.broker_cpu_s - process.first.broker_cpu_s
    other = (last.machine_cpu_s - process.first.machine_cpu_s - ours - np.nan_to_num(broker_cpu)) / wall
    return Run(
        contestant.name,
        workload.readings,
        whole,
        steady,
        first,
        last.cpu_s,
        last.cpu_s / workload.readings * 1e6,
        broker_cpu,
        max(0.0, float(other)),
        process.peak_rss_bytes / 1e6,
        verdict.outputs,
        verdict.right,
        verdict.summary(),
    )


async def _until_done(
    cluster: Cluster, process: Measured, target: str, task: Task, timeout_s: float, committed: bool
) -> Usage:
    """Waits until the outputs are there and no more come; the usage when the last one was seen."""
    grown = last = process.usage()
    count = 0
    async with cluster.ends(target, task.workload.partitions, committed=committed) as ends:
        while True:
            await asyncio.sleep(_POLL_S)
            now = await ends.total()
            last = process.usage()
            if now > count:
                count, grown = now, last
            idle = last.at - grown.at
            if count >= task.outputs and idle >= _SETTLE_S:
                return grown
            if process.exited is not None or idle > _STALL_S or last.at - process.first.at > timeout_s:
                return grown


async def measure(
    at: Broker,
    contestants: Sequence[Contestant],
    *,
    runs: int,
    seconds: float,
    sensors: int,
    readings: int | None,
    timeout_s: float,
) -> list[Run]:
    """`runs` runs of each contestant, in turn, each on a topic sized for about `seconds` at its rate."""
    cluster = Cluster(at.bootstrap)
    tasks: dict[str, Task] = {}
    sizes = {c.name: readings or _size(c.rate * seconds) for c in contestants}
    try:
        pairs = []
        for c in contestants:
            key = f"{sizes[c.name]} {c.detector}"
            if key not in tasks:
                tasks[key] = await json_task(cluster, Workload(sizes[c.name], sensors), c.detector)
            pairs.append((c, tasks[key]))
        return await take_turns(cluster, pairs, runs=runs, broker_pid=at.pid, timeout_s=timeout_s)
    finally:
        await cluster.delete(task.source for task in tasks.values())


async def take_turns(
    cluster: Cluster,
    pairs: Sequence[tuple[Contestant, Task]],
    *,
    runs: int,
    broker_pid: int | None,
    timeout_s: float,
) -> list[Run]:
    """A B C A B C ..., so that whatever the machine does meanwhile happens to all of them."""
    results: list[Run] = []
    for number in range(runs):
        for contestant, task in pairs:
            run = await run_once(cluster, task, contestant, broker_pid=broker_pid, timeout_s=timeout_s)
            results.append(run)
            print(
                f"run {number + 1} {contestant.name}: steady {run.steady_rate:,.0f}/s, whole"
                f" {run.whole_rate:,.0f}/s, {run.cpu_us_per_reading:.2f} µs CPU a reading,"
                f" {run.peak_rss_mb:.0f} MB, others' CPU {run.other_cores:.2f} cores, {run.verdict}",
                file=sys.stderr,
            )
    return results


def _size(readings: float) -> int:
    """Rounded to one figure after the first, so that contestants of about one speed share a topic."""
    digits = len(str(int(readings))) - 2
    return max(1000, int(round(readings, -digits)))


def summary(runs: Sequence[Run], titles: Mapping[str, str] | None = None) -> tuple[str, list[dict[str, Any]]]:
    """The table of medians, and the same as data; `titles` names what is no registered contestant."""
    rows, data = [], []
    names = list(dict.fromkeys(r.contestant for r in runs))
    medians: dict[str, dict[str, float]] = {}
    for name in names:
        mine = [r for r in runs if r.contestant == name]
        medians[name] = {
            key: report.median([float(getattr(r, key)) for r in mine])
            for key in (
                "steady_rate",
                "whole_rate",
                "first_output_s",
                "cpu_us_per_reading",
                "peak_rss_mb",
                "other_cores",
            )
        }
    base = medians.get("polarstream")
    for name in names:
        m = medians[name]
        mine = [r for r in runs if r.contestant == name]
        right = all(r.right for r in mine)
        ratio = base["steady_rate"] / m["steady_rate"] if base and m["steady_rate"] else float("nan")
        spread = [r.steady_rate for r in mine]
        rows.append(
            [
                (titles or {}).get(name) or CONTESTANTS[name].title,
                f"{mine[0].readings:,}",
                f"{m['steady_rate']:,.0f}",
                f"{min(spread):,.0f}..{max(spread):,.0f}",
                f"{m['whole_rate']:,.0f}",
                f"{m['first_output_s']:.1f}",
                f"{m['cpu_us_per_reading']:.2f}",
                f"{max(r.peak_rss_mb for r in mine):.0f}",
                f"{ratio:.2f}x" if base else "",
                "all right" if right else "WRONG",
            ]
        )
        whole = base["whole_rate"] / m["whole_rate"] if base and m["whole_rate"] else float("nan")
        data.append(
            {
                "contestant": name,
                "runs": len(mine),
                "right": right,
                "polarstream_is_times": ratio,
                "polarstream_is_times_whole": whole,
                **m,
            }
        )
    headings = [
        "contestant",
        "readings",
        "steady/s",
        "from..to",
        "whole/s",
        "first out s",
        "CPU µs",
        "peak MB",
        "polarstream is",
        "outputs",
    ]
    return report.table(headings, rows), data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every benchmark on a broker shares."""
    parser.add_argument("--bootstrap", help="use this broker instead of a fresh local one")
    parser.add_argument("--runs", type=int, default=3, help="runs of each, in turn (default: %(default)s)")


def chosen(names: str) -> list[Contestant]:
    """The contestants of a comma-separated list."""
    unknown = [n for n in names.split(",") if n not in CONTESTANTS]
    if unknown:
        raise SystemExit(f"error: no contestant {', '.join(unknown)}: there are {', '.join(CONTESTANTS)}")
    return [CONTESTANTS[n] for n in names.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--peers", default=",".join(CONTESTANTS), help="comma-separated (default: all: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=12,
        help="length of a run at the rate expected (default: %(default)s)",
    )
    parser.add_argument("--readings", type=int, help="as many for each instead")
    parser.add_argument("--sensors", type=int, default=1000)
    parser.add_argument(
        "--timeout", type=float, default=300, help="seconds for one run (default: %(default)s)"
    )
    arguments = parser.parse_args()
    contestants = chosen(arguments.peers)
    cache_folder().mkdir(parents=True, exist_ok=True)
    for contestant in contestants:
        contestant.install()
    Workload(20_000).check_reference()
    with broker(arguments.bootstrap) as at:
        runs = asyncio.run(
            measure(
                at,
                contestants,
                runs=arguments.runs,
                seconds=arguments.seconds,
                sensors=arguments.sensors,
                readings=arguments.readings,
                timeout_s=arguments.timeout,
            )
        )
    text, data = summary(runs)
    print(text)
    path = report.save(
        "throughput",
        {
            "workload": describe(arguments.sensors),
            "medians": data,
            "runs": [asdict(r) for r in runs],
            "versions": {c.name: c.versions() for c in contestants},
        },
    )
    print(f"\nwritten to {path}")
    if not all(r.right for r in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
