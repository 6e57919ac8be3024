"""Random graphs of elementwise, moving and multiplying nodes agree with onnxruntime."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import gpu_inference

UNARY = ("Relu", "Tanh", "Sigmoid", "Neg", "Abs", "HardSwish", "Softplus")
BINARY = ("Add", "Sub", "Mul", "Max", "Min")


@st.composite
def graphs(draw: st.DrawFn) -> tuple[bytes, np.ndarray]:
    """A model of one input [n, c, h, w] and its input."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = tuple(draw(st.integers(1, 5)) for _ in range(4))
    nodes: list[Any] = []
    weights: list[Any] = []
    tensors: list[tuple[str, tuple[int, ...]]] = [("x", shape)]

    def weight(*size: int) -> str:
        array = (rng.standard_normal(size) / 2).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{len(weights)}"))
        return f"w{len(weights) - 1}"

    def ints(*values: int) -> str:
        weights.append(numpy_helper.from_array(np.int64(values), f"w{len(weights)}"))
        return f"w{len(weights) - 1}"

    def emit(op: str, inputs: list[str], result: tuple[int, ...], **attributes: Any) -> None:
        name = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], **attributes))
        tensors.append((name, result))

    for _ in range(draw(st.integers(1, 8))):
        x, size = draw(st.sampled_from(tensors))
        n, c, h, w = size
        match draw(
            st.sampled_from(("unary", "binary", "same", "conv", "concat", "transpose", "slice", "matmul"))
        ):
            case "unary":
                emit(draw(st.sampled_from(UNARY)), [x], size)
            case "binary":
                emit(
                    draw(st.sampled_from(BINARY)),
                    [x, weight(*draw(st.sampled_from([(c, 1, 1), (w,), size])))],
                    size,
                )
            case "same":
                others = [name for name, other in tensors if other == size]
                emit(draw(st.sampled_from(BINARY)), [x, draw(st.sampled_from(others))], size)
            case "conv":
                o, k = draw(st.integers(1, 9)), draw(st.sampled_from([1, 3]))
                emit("Conv", [x, weight(o, c, k, k), weight(o)], (n, o, h, w), pads=[k // 2] * 4)
            case "concat":
                emit("Concat", [x, x], (n, 2 * c, h, w), axis=1)
            case "transpose":
                emit("Transpose", [x], (n, c, w, h), perm=[0, 1, 3, 2])
            case "slice":
                emit("Slice", [x, ints(0), ints(max(h - 1, 1)), ints(2)], (n, c, max(h - 1, 1), w))
            case "matmul":
                m = draw(st.integers(1, 6))
                emit("MatMul", [x, weight(w, m)], (n, c, h, m))
    # the last, and one from the middle, so that some intermediate tensors must stay
    outputs = list(dict.fromkeys([tensors[-1][0], draw(st.sampled_from(tensors[1:]))[0]]))
    graph = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString(), rng.standard_normal(shape).astype(np.float32)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_a_random_graph_agrees_with_onnxruntime(case: tuple[bytes, np.ndarray]) -> None:
    _agree(*case, "fp32", 1e-3)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_halves_between_its_convolutions_change_a_random_graph_little(case: tuple[bytes, np.ndarray]) -> None:
    _agree(*case, "fp16", 1e-2)


def _agree(model: bytes, x: np.ndarray, activations: Literal["fp32", "fp16"], relative: float) -> None:
    ours = gpu_inference.load(model, fallback=False, activations=activations)
    theirs = gpu_inference.load(model, engine="onnxruntime")
    got, want = ours.run({"x": x}), theirs.run({"x": x})
    ours.close()
    theirs.close()
    for name, array in want.items():
        assert got[name].shape == array.shape
        np.testing.assert_allclose(
            got[name], array, rtol=relative, atol=0.1 * relative * max(1.0, float(np.abs(array).max()))
        )
