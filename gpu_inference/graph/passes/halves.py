"""Float16 models as float32 ones: only the storage of their weights stays half.

No card that we are made for computes in float16, and kernels for convolutions and products read float32. So
everything float16 in such a model becomes float32, between casts at its inputs and outputs, and `Graph.half`
says that its weights lose nothing when they are stored as halves. Results are those of float32 arithmetic:
nearer to the truth than float16's, and not what its rounding and overflow would give.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from onnx import GraphProto, TensorProto

from gpu_inference.graph.ir import Array, Graph, Node

_HALF: Final = np.dtype(np.float16)
# attributes that name an element type
_TYPES: Final = frozenset({"to", "dtype", "output_dtype", "softmax_precision", "stash_type"})


def widen_halves(graph: Graph) -> None:
    """Rewrites a model whose convolutions or products have float16 weights; leaves others alone."""
    weights = _weight_types(graph)
    if _HALF not in weights or any(_has_subgraph(node) for node in graph.nodes):
        return
    outer = [info for info in (*graph.inputs, *graph.outputs) if info.dtype == np.float16]
    if len({info.name for info in outer}) < len(outer):
        return  # an input that is an output too
    graph.half = weights == {_HALF}
    names = {info.name: f"{info.name}:wide" for info in outer}
    graph.constants = {names.get(name, name): _widened(array) for name, array in graph.constants.items()}
    for node in graph.nodes:
        node.inputs = [names.get(name, name) for name in node.inputs]
        node.outputs = [names.get(name, name) for name in node.outputs]
        node.attributes = {key: _attribute(key, value) for key, value in node.attributes.items()}
    inputs = [_cast(name, names[name], np.float32, graph) for name in _names(graph.inputs, names)]
    outputs = [_cast(names[name], name, np.float16, graph) for name in _names(graph.outputs, names)]
    graph.nodes = [*inputs, *graph.nodes, *outputs]


def _names(infos: Any, names: Mapping[str, str]) -> list[str]:
    return [info.name for info in infos if info.name in names]


def _weight_types(graph: Graph) -> set[np.dtype[Any]]:
    """Element types of the constant weights of convolutions and products, before any cast."""
    makers, found = graph.producers(), set[np.dtype[Any]]()
    for node in graph.nodes:
        if node.op in ("Conv", "Gemm", "MatMul") and not node.domain:
            name = node.input(1)
            while (maker := makers.get(name)) is not None and maker.op == "Cast":
                name = maker.inputs[0]
            if name in graph.constants:
                found.add(graph.constants[name].dtype)
    return found


def _has_subgraph(node: Node) -> bool:
    return any(isinstance(value, GraphProto) for value in node.attributes.values())


def _widened(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _attribute(key: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _widened(value)
    return TensorProto.FLOAT if key in _TYPES and value == TensorProto.FLOAT16 else value


def _cast(source: str, target: str, dtype: type[Any], graph: Graph) -> Node:
    to = TensorProto.FLOAT if dtype is np.float32 else TensorProto.FLOAT16
    return Node("Cast", [source], [target], {"to": to}, target, "", graph.opset)
