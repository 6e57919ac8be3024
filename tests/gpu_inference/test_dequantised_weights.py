"""Weights that a model stores as integers are floats once our engine has loaded it."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpu_inference.graph.importer import import_graph
from gpu_inference.graph.passes.pipeline import optimise

INT4 = np.dtype(helper.tensor_dtype_to_np_dtype(TensorProto.INT4))


@pytest.mark.parametrize(
    ("kind", "scales", "zero_point", "attributes"),
    [
        (np.int8, (), False, {}),
        (np.uint8, (), True, {}),
        (np.int8, (6,), False, {"axis": 0}),
        (np.uint8, (8,), True, {"axis": 1}),
        (np.int8, (8,), True, {"axis": -1}),
        (INT4, (6,), False, {"axis": 0}),
        (np.int8, (6, 2), True, {"axis": 1, "block_size": 4}),
        (INT4, (3, 8), False, {"axis": 0, "block_size": 2}),
        (np.int32, (), False, {}),
    ],
)
def test_folded_weights_are_those_of_onnxruntime(
    kind: np.dtype, scales: tuple[int, ...], zero_point: bool, attributes: dict[str, int]
) -> None:
    chance = np.random.default_rng(2)
    bound = 7 if kind == INT4 else 100
    low = 0 if kind == np.uint8 else -bound
    arrays = {
        "q": chance.integers(low, bound, (6, 8)).astype(kind),
        "scale": np.asarray(chance.random(scales) + 0.5, np.float32),
    }
    if zero_point:
        arrays["zero"] = np.asarray(chance.integers(max(low, -5), 5, scales), kind)
    nodes = [
        helper.make_node("DequantizeLinear", list(arrays), ["w"], **attributes),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", d]) for n, d in (("x", 6), ("y", 8))]
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "weights", infos[:1], infos[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    folded = optimise(import_graph(model))
    assert [node.op for node in folded.nodes] == ["MatMul"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": np.eye(6, dtype=np.float32)})
    (weights,) = (folded.constants[name] for name in folded.nodes[0].inputs[1:])
    np.testing.assert_allclose(
        weights, want, rtol=1e-5
    )  # onnxruntime fuses some into its product of integers
