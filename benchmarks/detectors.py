"""Microseconds a reading and the state of every registered detector: `python -m benchmarks.detectors`.

Chunks of 10,000 readings of 10,000 sensors, then all of one sensor; one field, best of several.
"""

from __future__ import annotations

import time

import numpy as np

from anomaly import DETECTORS, build_detector
from benchmarks import report

CHUNK = 10_000
REPEATS = 7


def cost_us(name: str, sensors: int, warm_chunks: int) -> float:
    rng = np.random.default_rng(0)
    detector = build_detector({"type": name}, ["value"])
    state = detector.init(sensors)
    taken = []
    for chunk in range(warm_chunks + REPEATS):
        rows = rng.permutation(sensors) if sensors == CHUNK else np.zeros(CHUNK)
        values = rng.normal(70, 3, (CHUNK, 1))
        ts = chunk * 10.0 + np.arange(CHUNK) * 1e-3
        begun = time.perf_counter()
        detector.score(state, rows.astype(np.int32), values, ts)
        taken.append(time.perf_counter() - begun)
    return min(taken[warm_chunks:]) / CHUNK * 1e6


def main() -> None:
    rows = []
    for name in sorted(DETECTORS):
        # 3,000 readings of each sensor: warm-ups are over, and what is remembered fills its memory
        many, one = cost_us(name, CHUNK, 3000), cost_us(name, 1, 3)
        size = build_detector({"type": name}, ["value"]).init(1).nbytes
        rows.append([name, f"{many:.3f}", f"{one:.3f}", str(size)])
    print(report.table(["detector", "10,000 sensors, us", "one sensor, us", "state, bytes"], rows))


if __name__ == "__main__":
    main()
