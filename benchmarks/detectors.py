"""Microseconds a reading and the state of detectors: `python -m benchmarks.detectors [NAME ...]`.

Chunks of 10,000 readings of 10,000 sensors, then all of one sensor; one field, best of several.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from anomaly import DETECTORS, Detector, build_detector
from benchmarks import report

CHUNK = 10_000
REPEATS = 7
#: What detectors need that don't run without being told something.
CONFIGS: dict[str, dict[str, Any]] = {
    "onnx": {"batch": 256},
    "physics": {"balances": ["d(value)/dt = (70 - value) / 30"]},
}


def autoencoder(path: Path, window: int = 32, inner: int = 8) -> Path:
    """Write an untrained autoencoder of two layers each way."""
    rng = np.random.default_rng(0)
    sizes = [window, 2 * inner, inner, 2 * inner, window]
    nodes, weights, tensor = [], [], "x"
    for i, (wide, narrow) in enumerate(itertools.pairwise(sizes)):
        w = (rng.normal(0, 1, (wide, narrow)) / wide**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        last = i == len(sizes) - 2
        nodes.append(helper.make_node("MatMul", [tensor, f"w{i}"], ["y" if last else f"p{i}"]))
        if not last:
            nodes.append(helper.make_node("Tanh", [f"p{i}"], [f"a{i}"]))
            tensor = f"a{i}"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", window]) for name in "xy")
    graph = helper.make_graph(nodes, "autoencoder", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def build(name: str) -> Detector:
    if name == "onnx" and "model" not in CONFIGS[name]:
        path = Path(tempfile.mkdtemp()) / "autoencoder.onnx"
        CONFIGS[name]["model"] = str(autoencoder(path))
    return build_detector({"type": name, **CONFIGS.get(name, {})}, ["value"])


def cost_us(name: str, sensors: int, warm_chunks: int) -> float:
    rng = np.random.default_rng(0)
    detector = build(name)
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
    for name in sys.argv[1:] or sorted(DETECTORS):
        # 3,000 readings of each sensor: warm-ups are over, and what is remembered fills its memory
        many, one = cost_us(name, CHUNK, 3000), cost_us(name, 1, 3)
        size = build(name).init(1).nbytes
        rows.append([name, f"{many:.3f}", f"{one:.3f}", str(size)])
    print(report.table(["detector", "10,000 sensors, us", "one sensor, us", "state, bytes"], rows))


if __name__ == "__main__":
    main()
