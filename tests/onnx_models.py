"""Small ONNX models over windows of readings, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]


def basis(window: int, period: float = 8.0) -> NDArray[np.float64]:
    """Orthonormal: a constant, a line, a sine and a cosine, [window, 4]."""
    t = np.arange(window)
    phase = 2 * np.pi * t / period
    return np.linalg.qr(np.stack([np.ones(window), t, np.sin(phase), np.cos(phase)], 1))[0]


def save(path: Path, nodes: list[onnx.NodeProto], takes: Shape, gives: Shape, **weights: NDArray) -> Path:
    """Write a model from `x` to `y` with these weights."""
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, takes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, gives)],
        [
            numpy_helper.from_array(w if w.dtype == np.int64 else w.astype(np.float32), name)
            for name, w in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def autoencoder(path: Path, window: int = 16) -> Path:
    """[n, window]: rebuilds lines and waves of eight readings, through a bottleneck of four."""
    u = basis(window)
    nodes = [helper.make_node("MatMul", ["x", "u"], ["z"]), helper.make_node("MatMul", ["z", "v"], ["y"])]
    return save(path, nodes, ["n", window], ["n", window], u=u, v=u.T)


def forecaster(path: Path, window: int = 12, fields: int = 3) -> Path:
    """[n, window, fields] to [n, fields]: goes on with the line and the wave of each field."""
    u = basis(window)
    t = window
    after = np.linalg.lstsq(u, np.eye(window), rcond=None)[0].T  # [window, 4]: coefficients of the basis
    # the basis one step on, from the same combination of its generators
    phase = 2 * np.pi * np.arange(window) / 8.0
    raw = np.stack([np.ones(window), np.arange(window), np.sin(phase), np.cos(phase)], 1)
    mixed = np.linalg.lstsq(raw, u, rcond=None)[0]
    ahead = np.array([1, t, np.sin(2 * np.pi * t / 8), np.cos(2 * np.pi * t / 8)]) @ mixed
    one = after @ ahead  # [window]
    w = np.zeros((window, fields, fields))
    for field in range(fields):
        w[:, field, field] = one
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"]),
    ]
    return save(
        path,
        nodes,
        ["n", window, fields],
        ["n", fields],
        w=w.reshape(window * fields, fields),
        b=np.zeros(fields),
    )


def convolutional(path: Path, fields: int = 3) -> Path:
    """[n, fields, any window]: a smoothing of each field over five readings."""
    kernel = np.zeros((fields, fields, 5))
    for field in range(fields):
        kernel[field, field] = 0.2
    nodes = [helper.make_node("Conv", ["x", "k"], ["y"], kernel_shape=[5], pads=[2, 2])]
    return save(path, nodes, ["n", fields, "w"], ["n", fields, "w"], k=kernel)
