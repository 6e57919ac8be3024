"""What waiting for company costs and saves, in simulated time: `python -m benchmarks.batching_simulated`.

Poisson arrivals, devices that take a + b * n for a batch of n, the real MicroBatcher. For each share of what
the devices can do at most: mean batch, latencies and the share of time that the devices are busy, for a
batcher that never waits (max_delay_ms = 0) and for one that waits up to `--max-delay-ms`. Same seed, same
numbers.
"""

from __future__ import annotations

import argparse
import itertools
import random
from dataclasses import dataclass

import numpy as np

from gpu_inference.serving import Batch, CostCurve, Item, Limits, MicroBatcher

SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Outcome:
    """Of one simulation: frames of a batch, milliseconds, share of time."""

    mean_batch: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    busy: float


def simulate(
    rate_hz: float,
    cost_s: tuple[float, float],
    devices: int,
    limits: Limits,
    frames: int = 20_000,
    seed: int = 1,
) -> Outcome:
    """Runs `frames` arrivals through a batcher; a busy device has one full batch waiting at most."""
    rng = random.Random(seed)
    arrivals = list(itertools.accumulate(rng.expovariate(rate_hz) for _ in range(frames)))
    curve = CostCurve({n: cost_s[0] + cost_s[1] * n for n in SIZES})
    batcher: MicroBatcher[None] = MicroBatcher(limits, curve)
    running: list[tuple[float, Batch[None]] | None] = [None] * devices
    queued: list[Batch[None] | None] = [None] * devices
    latencies_s: list[float] = []
    coming, batches, busy_s, now_s = 0, 0, 0.0, 0.0

    def start(device: int, batch: Batch[None]) -> float:
        took_s = cost_s[0] + cost_s[1] * batch.size
        running[device] = (now_s + took_s, batch)
        return took_s

    while len(latencies_s) < frames:
        times = [run[0] for run in running if run is not None]
        times += arrivals[coming : coming + 1]
        due_s = batcher.due_s()
        if due_s is not None and None in running:
            times.append(max(due_s, now_s))
        now_s = min(times)
        while coming < frames and arrivals[coming] <= now_s:
            item = Item(f"camera-{coming % 20}", coming, arrivals[coming], None)
            batcher.offer(item, arrivals[coming])
            coming += 1
        for device, run in enumerate(running):
            if run is not None and run[0] <= now_s:
                batcher.answered(run[1], now_s)
                latencies_s += [now_s - item.created_s for item in run[1].items]
                running[device] = None
                waiting, queued[device] = queued[device], None
                if waiting is not None:
                    busy_s += start(device, waiting)
        while True:
            idle = [device for device in range(devices) if running[device] is None]
            room = [device for device in range(devices) if running[device] and queued[device] is None]
            batch = batcher.take(now_s, len(idle), len(room))
            if batch is None:
                break
            batches += 1
            if idle:
                busy_s += start(idle[0], batch)
            else:
                queued[room[0]] = batch
    p50, p95, p99 = (1e3 * float(p) for p in np.percentile(latencies_s, (50, 95, 99)))
    return Outcome(frames / batches, p50, p95, p99, busy_s / now_s / devices)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batching_simulated",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fixed-ms", type=float, default=2.0, help="a: of a batch")
    parser.add_argument("--frame-ms", type=float, default=0.1, help="b: of each frame in it")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--max-delay-ms", type=float, default=5.0)
    parser.add_argument("--target-load", type=float, default=0.9)
    options = parser.parse_args()
    cost_s = (options.fixed_ms / 1e3, options.frame_ms / 1e3)
    most_hz = options.devices * SIZES[-1] / (cost_s[0] + cost_s[1] * SIZES[-1])
    print(f"at most {most_hz:.0f} frames/s in batches of {SIZES[-1]}")
    for share in (0.05, 0.2, 0.5, 0.8, 0.95):
        for delay_ms in (0.0, options.max_delay_ms):
            limits = Limits(SIZES[-1], delay_ms, max_queue=10**9, target_load=options.target_load)
            found = simulate(share * most_hz, cost_s, options.devices, limits)
            print(
                f"{share:4.0%} of it, max_delay_ms {delay_ms:3.0f}: batch {found.mean_batch:5.1f}  "
                f"p50 {found.p50_ms:6.2f}  p95 {found.p95_ms:6.2f}  p99 {found.p99_ms:6.2f} ms  "
                f"busy {found.busy:4.0%}"
            )


if __name__ == "__main__":
    main()
