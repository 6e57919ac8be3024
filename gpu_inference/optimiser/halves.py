"""A model that computes in float16 throughout, between casts at its inputs and outputs.

For onnxruntime on GPUs with fast halves. Its CPU provider casts to float32 around most operators, and our
engine computes in float32 in any case: for those, `storage.store_halves` is the same with less rounding.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto

from gpu_inference.errors import ModelError
from gpu_inference.graph.exporter import export_model
from gpu_inference.graph.importer import STORED_KEY, import_graph
from gpu_inference.graph.ir import Graph, Node
from gpu_inference.optimiser.loading import set_metadata

#: Inputs that are float32 whatever the data is.
_FLOAT_INPUTS: Final = {"Resize": (1, 2), "Upsample": (1,)}
#: Operators without a half form, or whose sums overflow in it: their neighbours are cast.
_WHOLE: Final = frozenset(
    [
        "NonMaxSuppression",
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "QuantizeLinear",
        "DynamicQuantizeLinear",
        "DequantizeLinear",
        "Range",
        "CumSum",
        "ReduceSumSquare",
        "ReduceL2",
        "Pow",
        "Exp",
        "BatchNormalization",
        "GridSample",
        "NegativeLogLikelihoodLoss",
        "SoftmaxCrossEntropyLoss",
    ]
)
#: A segmentation fault while a session is made, seen with onnxruntime 1.32 on a CPU.
_CRASHING: Final = ("LSTM", "GRU", "RNN")
_TYPES: Final = ("to", "dtype", "output_dtype")
_LARGEST: Final = 65504.0


def compute_in_halves(model: ModelProto) -> ModelProto:
    """The model in float16; its inputs and outputs stay as they are.

    Raises:
        ModelError: it has subgraphs, recurrent layers, or float64 tensors.
    """
    graph = import_graph(model)
    if any(isinstance(value, GraphProto) for node in graph.nodes for value in node.attributes.values()):
        raise ModelError("a model with subgraphs (If, Loop, Scan) isn't rewritten to float16: take fp16")
    if any(node.op in _CRASHING for node in graph.nodes):
        raise ModelError("onnxruntime crashes on recurrent layers between float16 casts: take fp16")
    floats = _float_tensors(graph, model)
    inputs = {info.name: f"{info.name}:half" for info in graph.inputs if info.dtype == np.float32}
    outputs = {
        info.name: f"{info.name}:half"
        for info in graph.outputs
        if info.name in floats and info.name not in inputs
    }
    renamed = {**inputs, **outputs}
    for name in [name for name, array in graph.constants.items() if array.dtype == np.float32]:
        array = np.clip(graph.constants[name], -_LARGEST, _LARGEST)
        graph.constants[f"{name}:half"] = array.astype(np.float16)
        renamed[name] = f"{name}:half"
    nodes = [Node("Cast", [old], [new], {"to": int(TensorProto.FLOAT16)}, new) for old, new in inputs.items()]
    for node in graph.nodes:
        nodes += _rewritten(node, renamed, floats)
    for info in graph.outputs:
        if info.name in outputs:
            nodes.append(
                Node(
                    "Cast",
                    [outputs[info.name]],
                    [info.name],
                    {"to": int(TensorProto.FLOAT)},
                    f"{info.name}:whole",
                )
            )
    graph.nodes = nodes
    used = {name for node in nodes for name in node.inputs} | graph.output_names()
    graph.constants = {name: array for name, array in graph.constants.items() if name in used}
    result = export_model(graph, model)
    set_metadata(result, STORED_KEY, "fp16")
    return result


def _rewritten(node: Node, renamed: dict[str, str], floats: set[str]) -> list[Node]:
    stays = _FLOAT_INPUTS.get(node.op, ())
    if node.op in _WHOLE or node.domain:
        return _between_casts(node, renamed, floats)
    node.inputs = [
        name if index in stays else renamed.get(name, name) for index, name in enumerate(node.inputs)
    ]
    node.outputs = [renamed.get(name, name) for name in node.outputs]
    for key, value in node.attributes.items():
        if key in _TYPES and value == TensorProto.FLOAT:
            node.attributes[key] = int(TensorProto.FLOAT16)
        elif isinstance(value, np.ndarray) and value.dtype == np.float32:
            node.attributes[key] = value.astype(np.float16)
    return [node]


def _between_casts(node: Node, renamed: dict[str, str], floats: set[str]) -> list[Node]:
    """The node in float32: its float inputs are widened, its float outputs narrowed."""
    before: list[Node] = []
    after: list[Node] = []
    for index, name in enumerate(node.inputs):
        if name in floats and name:
            wide = f"{node.outputs[0]}:wide{index}"
            before.append(_cast(renamed.get(name, name), wide, TensorProto.FLOAT))
            node.inputs[index] = wide
    for index, name in enumerate(node.outputs):
        if name in floats and name:
            wide = f"{name}:wide"
            after.append(_cast(wide, renamed.get(name, name), TensorProto.FLOAT16))
            node.outputs[index] = wide
    return [*before, node, *after]


def _cast(source: str, target: str, kind: Any) -> Node:
    return Node("Cast", [source], [target], {"to": int(kind)}, f"{target}:cast")


def _float_tensors(graph: Graph, model: ModelProto) -> set[str]:
    """Names of the tensors that are float32 and not constants, as onnx infers them."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    unknown = [name for node in graph.nodes for name in node.outputs if name and not kinds.get(name)]
    if unknown:
        raise ModelError(f"the type of {unknown[0]!r} can't be inferred: take fp16 instead of fp16-whole")
    if TensorProto.DOUBLE in kinds.values():
        raise ModelError("the model computes in float64: take fp16 instead of fp16-whole")
    return {name for name, kind in kinds.items() if kind == TensorProto.FLOAT and name not in graph.constants}
