"""What checkpoints of many sensors cost: `python -m benchmarks.checkpoint --sensors 100000 --runs 3`.

The same readings with checkpoints as by default and with none during the run, in turn. A checkpoint writes
the state of every sensor that changed since the last one to the changelog, so many sensors make it dear.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses

from benchmarks import report
from benchmarks.cluster import Cluster, broker
from benchmarks.contestants import CONTESTANTS, cache_folder
from benchmarks.throughput import Run, add_arguments, json_task, summary, take_turns
from benchmarks.workload import Workload, describe

_NEVER_MS = 3_600_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--readings", type=int, default=4_000_000, help="(default: %(default)s)")
    parser.add_argument("--sensors", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--delivery", choices=["at_least_once", "exactly_once"], default="at_least_once")
    parser.add_argument(
        "--timeout", type=float, default=300, help="seconds for one run (default: %(default)s)"
    )
    arguments = parser.parse_args()
    base = CONTESTANTS["polarstream"]
    committed = arguments.delivery == "exactly_once"
    settings = {"delivery": arguments.delivery}
    on = dataclasses.replace(base, name="checkpoints", worker=settings, committed=committed)
    # exactly once an output counts when its checkpoint is committed: there a tenth of them stands for none
    off_ms = 1000 if committed else _NEVER_MS
    off = dataclasses.replace(
        on, name="none", worker={**settings, "checkpoint_interval_ms": off_ms}, committed=committed
    )
    titles = {"checkpoints": "checkpoints as by default", "none": f"one in {off_ms / 1000:g} s"}
    cache_folder().mkdir(parents=True, exist_ok=True)

    with broker(arguments.bootstrap) as at:

        async def measure() -> list[Run]:
            cluster = Cluster(at.bootstrap)
            task = await json_task(cluster, Workload(arguments.readings, arguments.sensors))
            try:
                return await take_turns(
                    cluster,
                    [(on, task), (off, task)],
                    runs=arguments.runs,
                    broker_pid=at.pid,
                    timeout_s=arguments.timeout,
                )
            finally:
                await cluster.delete([task.source])

        runs = asyncio.run(measure())
    text, data = summary(runs, titles)
    with_, without = data
    lost = 1.0 - with_["steady_rate"] / without["steady_rate"]
    cpu = with_["cpu_us_per_reading"] / without["cpu_us_per_reading"] - 1.0
    print(text)
    print(f"\ncheckpoints take {100 * lost:.1f}% of the steady rate, and {100 * cpu:.1f}% more CPU")
    path = report.save(
        "checkpoint",
        {
            "workload": describe(arguments.sensors) | {"readings": arguments.readings},
            "delivery": arguments.delivery,
            "rate_lost": lost,
            "cpu_more": cpu,
            "medians": data,
            "runs": [dataclasses.asdict(r) for r in runs],
            "versions": {"polarstream": base.versions()},
        },
    )
    print(f"written to {path}")
    if not all(r.right for r in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
