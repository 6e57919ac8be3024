"""Models that tests of requests share: one of tensors, one of windows of readings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gpu_inference.models.folder import ModelFolder, ModelVersion

TENSOR_MANIFEST = """
input = {kind = "tensor", shape = [3]}
output.task = "raw"
limits.max_batch = 16
limits.max_delay_ms = 1
"""

SERIES_MANIFEST = """
input = {kind = "series", fields = ["a", "b"], window = 3}
output = {task = "regression", values = ["sum"]}
"""


def _save(model_nodes: list[onnx.NodeProto], shape: list[int], out: list[int], path: Path) -> None:
    two = numpy_helper.from_array(np.array(2, np.float32), "two")
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    graph = helper.make_graph(
        model_nodes,
        "numbers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *out])],
        [two, axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def add_double_model(folder: Path, name: str = "double") -> ModelVersion:
    """Twice the three numbers that it is given."""
    path = folder.parent / f"{name}.onnx"
    _save([helper.make_node("Mul", ["x", "two"], ["y"])], [3], [3], path)
    return ModelFolder(folder).add(name, "1", path, TENSOR_MANIFEST)


def add_sum_model(folder: Path, name: str = "sum") -> ModelVersion:
    """The sum of a window of three readings of two fields."""
    path = folder.parent / f"{name}.onnx"
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    _save([node], [3, 2], [], path)
    return ModelFolder(folder).add(name, "1", path, SERIES_MANIFEST)
