"""Nodes that run on onnxruntime inside a plan, with what passes have fused into them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpu_inference
from gpu_inference.opencl.lowering import registry
from gpu_inference.opencl.session import OpenCLSession

CHANCE = np.random.default_rng(3)


def model(nodes: list[Any], x: tuple[int, ...], constants: dict[str, np.ndarray[Any, Any]]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, x) for name in ("x", "r")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(made.SerializeToString())


ACTIVATIONS: dict[str, list[Any]] = {
    "relu": [helper.make_node("Relu", ["a"], ["b"])],
    "clip": [helper.make_node("Clip", ["a", "low", "high"], ["b"])],
    "leaky_relu": [helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.2)],
    "silu": [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["b"])],
    "hard_sigmoid": [helper.make_node("HardSigmoid", ["a"], ["b"], alpha=0.3, beta=0.4)],
    "hardswish": [helper.make_node("HardSwish", ["a"], ["b"])],
    "elu": [helper.make_node("Elu", ["a"], ["b"], alpha=0.7)],
    "tanh": [helper.make_node("Tanh", ["a"], ["b"])],
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("op", ["Conv", "MatMul", "Gemm"])
def test_a_node_with_its_epilogue_gives_the_same_on_onnxruntime(
    op: str, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(node: Any, builder: Any) -> None:
        raise registry.Unsupported("on purpose")

    monkeypatch.setitem(registry.LOWERINGS, ("", op), refuse)
    constants = {"low": np.array(-0.5), "high": np.array(0.8)}
    if op == "Conv":
        shape: tuple[int, ...] = (2, 5, 6, 6)
        constants |= {"w": CHANCE.standard_normal((5, 5, 3, 3)) / 5, "bias": CHANCE.standard_normal(5)}
        nodes = [helper.make_node("Conv", ["x", "w", "bias"], ["a"], pads=[1] * 4)]
    else:
        shape = (4, 7)
        constants |= {"w": CHANCE.standard_normal((7, 7)) / 3, "bias": CHANCE.standard_normal(7)}
        nodes = [helper.make_node("Gemm", ["x", "w", "bias"], ["a"])]
        if op == "MatMul":
            nodes = [
                helper.make_node("MatMul", ["x", "w"], ["p"]),
                helper.make_node("Add", ["p", "bias"], ["a"]),
            ]
    nodes += [*ACTIVATIONS[activation], helper.make_node("Add", ["b", "r"], ["y"])]
    data = model(nodes, shape, constants)
    inputs = {name: CHANCE.standard_normal(shape).astype(np.float32) for name in ("x", "r")}
    reference = gpu_inference.load(data, engine="onnxruntime")
    session = OpenCLSession(data)
    try:
        np.testing.assert_allclose(session.run(inputs)["y"], reference.run(inputs)["y"], rtol=1e-5, atol=1e-5)
        assert list(session.report.fallback.values()) == ["on purpose"]
    finally:
        session.close()
        reference.close()
