"""Operators that sum, pool or attend, on shapes that fill more than one tile or work-group."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from gpu_inference.opencl.session import OpenCLSession

Arrays = dict[str, np.ndarray]


def model_of(
    nodes: list[Any], inputs: Arrays, constants: Arrays, outputs: list[str], opset: int = 21
) -> bytes:
    def info(name: str, array: np.ndarray | None) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype if array is not None else np.dtype("f4"))
        return helper.make_tensor_value_info(name, kind, array.shape if array is not None else None)

    graph = helper.make_graph(
        nodes,
        "g",
        [info(name, array) for name, array in inputs.items()],
        [info(name, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def agree(nodes: list[Any], inputs: Arrays, constants: Arrays, outputs: list[str]) -> OpenCLSession:
    """Both engines give the same; returns ours, for its report."""
    model = model_of(nodes, inputs, constants, outputs)
    wanted = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(outputs, inputs)
    session = OpenCLSession(model, fallback=False)
    got = session.run(inputs)
    for name, want in zip(outputs, wanted, strict=True):
        assert got[name].shape == want.shape
        np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-5)
    session.close()
    return session


@pytest.mark.parametrize("shape", [(3, 2500), (5, 130), (70, 3)])
def test_rows_of_any_length_are_normalised(shape: tuple[int, int]) -> None:
    x, size = 4 * random(*shape) + 3, shape[1]
    nodes = [
        helper.make_node("Softmax", ["x"], ["softmax"]),
        helper.make_node("LogSoftmax", ["x"], ["log"], axis=0),
        helper.make_node("LayerNormalization", ["x", "s", "b"], ["layer"]),
        helper.make_node("ReduceLogSumExp", ["x", "one"], ["lse"], keepdims=0),
        helper.make_node("ReduceSum", ["x", "zero"], ["sum"]),
        helper.make_node("ReduceMax", ["x"], ["max"]),
    ]
    constants = {"s": random(size), "b": random(size), "one": np.int64([1]), "zero": np.int64([0])}
    agree(nodes, {"x": x}, constants, ["softmax", "log", "layer", "lse", "sum", "max"])


@pytest.mark.parametrize("axes", [[0], [1], [2], [0, 2], [1, 3], [0, 1, 2, 3]])
def test_reductions_over_any_axes(axes: list[int]) -> None:
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0)]
    nodes.append(helper.make_node("ReduceL2", ["x", "axes"], ["norm"]))
    agree(nodes, {"x": random(7, 18, 5, 33)}, {"axes": np.int64(axes)}, ["mean", "norm"])


@pytest.mark.parametrize("channels", [8, 6])
def test_pooling_after_a_convolution_needs_no_transposes(channels: int) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["c"], ["m"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["m"], ["a"], kernel_shape=[2, 2], ceil_mode=1),
        helper.make_node("GlobalAveragePool", ["a"], ["y"]),
    ]
    session = agree(nodes, {"x": random(2, 8, 15, 13)}, {"w": random(channels, 8, 3, 3)}, ["y"])
    assert session.report.launches == 5  # the input to NHWC, and one each


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_over_several_tiles_of_keys(causal: int) -> None:
    q, k, v = random(2, 4, 9, 72), random(2, 2, 150, 72), random(2, 2, 150, 80)
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=causal, scale=0.2)
    inputs = {"q": q, "k": k, "v": v}
    session = OpenCLSession(model_of([node], inputs, {}, ["y"], 23), fallback=False)
    got = session.run(inputs)["y"]
    session.close()
    scores = 0.2 * q @ np.repeat(k, 2, axis=1).swapaxes(2, 3)
    if causal:
        scores[:, :, np.arange(150) > np.arange(9)[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    want = (weights / weights.sum(axis=-1, keepdims=True)) @ np.repeat(v, 2, axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_half_precision_is_computed_in_float() -> None:
    x = random(2, 6, 9, 40).astype(np.float16)
    nodes = [
        helper.make_node("Softmax", ["x"], ["softmax"]),
        helper.make_node("LayerNormalization", ["x", "s"], ["layer"]),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
        helper.make_node("MaxPool", ["x"], ["pool"], kernel_shape=[2, 3]),
    ]
    constants = {"s": np.full(40, 2, np.float16), "axes": np.int64([2, 3])}
    outputs = ["softmax", "layer", "mean", "pool"]
    session = OpenCLSession(model_of(nodes, {"x": x}, constants, outputs), fallback=False)
    got = session.run({"x": x})
    session.close()
    wide = x.astype(np.float32)
    weights = np.exp(wide - wide.max(axis=-1, keepdims=True))
    centred = wide - wide.mean(axis=-1, keepdims=True)
    wanted = {
        "softmax": weights / weights.sum(axis=-1, keepdims=True),
        "layer": 2 * centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5),
        "mean": wide.mean(axis=(2, 3), keepdims=True),
        "pool": np.lib.stride_tricks.sliding_window_view(wide, (2, 3), axis=(2, 3)).max(axis=(4, 5)),
    }
    for name, want in wanted.items():
        assert got[name].dtype == np.float16
        np.testing.assert_allclose(got[name], want, rtol=2e-3, atol=2e-4)
