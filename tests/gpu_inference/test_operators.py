"""Operators beyond what the ONNX node tests ask: sizes past one work-group, all directions, layouts, ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper, shape_inference

import gpu_inference

RNG = np.random.default_rng(11)


def _floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _model(
    nodes: list[Any], inputs: dict[str, np.ndarray], outputs: int, constants: dict[str, Any] | None
) -> bytes:
    """A serialised model with outputs y0, y1 ..."""
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    results = [helper.make_empty_tensor_value_info(f"y{i}") for i in range(outputs)]
    graph = helper.make_graph(nodes, "operators", infos, results, weights)
    opsets = [helper.make_opsetid("", 18)]
    model = shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    return model.SerializeToString()


def _agree(
    nodes: list[Any], inputs: dict[str, np.ndarray], outputs: int, constants: dict[str, Any] | None = None
) -> None:
    """The graph gives the same on our engine, without fallback, and on onnxruntime."""
    text = _model(nodes, inputs, outputs, constants)
    ours = gpu_inference.load(text, engine="opencl", fallback=False)
    theirs = gpu_inference.load(text, engine="onnxruntime")
    got, want = ours.run(inputs), theirs.run(inputs)
    ours.close()
    theirs.close()
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        np.testing.assert_allclose(got[name], array, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("op", "gates", "attributes"),
    [
        ("RNN", 1, {}),
        ("LSTM", 4, {"clip": 0.7}),
        ("LSTM", 4, {"input_forget": 1}),
        ("GRU", 3, {"linear_before_reset": 0}),
        ("GRU", 3, {"linear_before_reset": 1}),
    ],
)
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_recurrent_layers_of_sequences_of_unequal_length(
    op: str, gates: int, attributes: dict[str, Any], direction: str
) -> None:
    times, batch, inputs, hidden = 5, 3, 4, 37
    d = 2 if direction == "bidirectional" else 1
    states = ["h"] + (["c"] if op == "LSTM" else [])
    given = {
        "x": _floats(times, batch, inputs),
        "w": _floats(d, gates * hidden, inputs),
        "r": _floats(d, gates * hidden, hidden) * np.float32(0.3),
        "b": _floats(d, 2 * gates * hidden),
        "n": np.asarray([5, 1, 3], np.int32),
        **{name: _floats(d, batch, hidden) for name in states},
    }
    outputs = 2 + (op == "LSTM")
    node = helper.make_node(
        op,
        list(given),
        [f"y{i}" for i in range(outputs)],
        hidden_size=hidden,
        direction=direction,
        **attributes,
    )
    _agree([node], given, outputs)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_between_convolutions(mode: str) -> None:
    weights = {"w": _floats(6, 3, 3, 3), "v": _floats(5, 6, 1, 1), "s": np.float32([1, 1, 2, 1.5])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["a", "", "s"], ["b"], mode=mode),
        helper.make_node("Conv", ["b", "v"], ["y0"]),
    ]
    _agree(nodes, {"x": _floats(2, 3, 8, 10)}, 1, weights)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16])
def test_nearest_resize_moves_any_type(dtype: type[Any]) -> None:
    node = helper.make_node("Resize", ["x", "", "s"], ["y0"], nearest_mode="floor")
    x = RNG.integers(0, 100, (1, 2, 5, 4)).astype(dtype)
    _agree([node], {"x": x}, 1, {"s": np.float32([1, 1, 2, 3])})


def test_top_k_keeps_the_order_of_equal_elements() -> None:
    x = RNG.integers(-4, 4, (3, 200, 5)).astype(np.float32)
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["y0", "y1"], axis=1),
        helper.make_node("TopK", ["x", "k"], ["y2", "y3"], axis=1, largest=0),
    ]
    _agree(nodes, {"x": x}, 4, {"k": np.int64([17])})


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
def test_scatters_add_what_falls_together(dtype: type[Any]) -> None:
    index = RNG.integers(-6, 6, (40, 1))
    x, u = (RNG.integers(-9, 9, shape).astype(dtype) for shape in ((6, 7), (40, 7)))
    nodes = [
        helper.make_node("ScatterND", ["x", "i", "u"], ["y0"], reduction="add"),
        helper.make_node("ScatterElements", ["x", "j", "u"], ["y1"], reduction="add", axis=0),
    ]
    constants = {"i": index, "j": np.broadcast_to(index, (40, 7)).copy()}
    session = gpu_inference.load(
        _model(nodes, {"x": x, "u": u}, 2, constants), engine="opencl", fallback=False
    )
    got = session.run({"x": x, "u": u})
    session.close()
    want = x.copy()
    np.add.at(want, index[:, 0], u)
    np.testing.assert_array_equal(got["y0"], want)
    np.testing.assert_array_equal(got["y1"], want)


def test_boxes_are_suppressed_as_onnxruntime_does() -> None:
    corner = RNG.random((2, 60, 2)).astype(np.float32) * 4
    boxes = np.concatenate([corner, corner + RNG.random((2, 60, 2)).astype(np.float32) * 3], axis=2)
    node = helper.make_node("NonMaxSuppression", ["b", "s", "m", "o", "t"], ["y0"])
    constants = {"m": np.int64([9]), "o": np.float32([0.4]), "t": np.float32([0.3])}
    _agree([node], {"b": boxes, "s": RNG.random((2, 3, 60)).astype(np.float32)}, 1, constants)


def test_quantised_products_saturate() -> None:
    a, b = (RNG.integers(-128, 128, shape).astype(np.int8) for shape in ((5, 300), (300, 6)))
    constants = {
        "as": np.float32(0.1),
        "az": np.int8(3),
        "bs": np.float32(0.1),
        "bz": np.int8(-7),
        "ys": np.float32(3.0),
        "yz": np.int8(5),
    }
    node = helper.make_node("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y0"])
    _agree([node], {"a": a, "b": b}, 1, constants)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_samples_far_outside(mode: str, padding: str) -> None:
    grid = _floats(2, 9, 5, 2) * np.float32(1.5)
    node = helper.make_node("GridSample", ["x", "g"], ["y0"], mode=mode, padding_mode=padding)
    _agree([node], {"x": _floats(2, 3, 7, 6), "g": grid}, 1)
