"""Structured pruning: whole output channels of convolutions go, with everything that reads them.

The model is smaller and faster on any engine. Only where it is safe: the channels of a convolution are
followed through activations, norms, pooling and depthwise convolutions to the layers that read them, and if
they meet anything else on the way (a residual, a concatenation, an output of the model), the convolution is
left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from onnx import ModelProto

from gpu_inference.graph.exporter import export_model
from gpu_inference.graph.importer import import_graph
from gpu_inference.graph.ir import Array, Graph, Node
from gpu_inference.graph.passes.dead_code import remove_dead_code

#: Each channel of their result depends on the same channel of their input alone.
_CHANNEL_WISE: Final = frozenset(
    [
        "Relu",
        "LeakyRelu",
        "Elu",
        "Celu",
        "Selu",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Softplus",
        "Softsign",
        "Mish",
        "Gelu",
        "Clip",
        "Abs",
        "Neg",
        "Sqrt",
        "Exp",
        "Erf",
        "Identity",
        "Cast",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
    ]
)
_BINARY: Final = frozenset(("Add", "Sub", "Mul", "Div", "Max", "Min"))
#: Widths of the kernels: other counts of channels would be padded to it.
_STEP: Final = 4


@dataclass(slots=True)
class _Reach:
    """Where a convolution's channels go.

    Attributes:
        tensors: that have them, and whether they have nothing but them (rank 2, or 1x1 images).
        arrays: constants with one entry a channel: node, input and axis.
        readers: weights that read them: node, input and axis.
        depthwise: convolutions whose groups they are.
    """

    tensors: dict[str, bool] = field(default_factory=dict)
    arrays: list[tuple[Node, int, int]] = field(default_factory=list)
    readers: list[tuple[Node, int, int]] = field(default_factory=list)
    depthwise: list[Node] = field(default_factory=list)


def prune_channels(model: ModelProto, share: float) -> ModelProto:
    """Removes the share `share` of each convolution's channels: those with the smallest weights.

    A channel counts as much as the norm of its filter times the norm of the weights that read it.

    Args:
        model: in float32.
        share: of the channels; what is left is rounded up to a multiple of 4.
    """
    graph = import_graph(model)
    consumers, fixed = graph.consumers(), graph.output_names()
    number = 0
    for node in graph.nodes:
        weights = graph.constants.get(node.input(1))
        if node.op != "Conv" or node.domain or node.attributes.get("group", 1) != 1 or weights is None:
            continue
        if node.input(2) and node.input(2) not in graph.constants:
            continue
        count = len(weights)
        left = min(count, max(_STEP, -(-round(count * (1 - share)) // _STEP) * _STEP))
        reach = _reach(graph, node, count, consumers, fixed) if left < count else None
        if reach is None:
            continue
        kept = np.sort(np.argsort(-_importance(graph, weights, reach), kind="stable")[:left])
        number += 1
        _cut(graph, node, reach, kept, f"kept{number}")
    remove_dead_code(graph)
    return export_model(graph, model)


def _reach(
    graph: Graph, conv: Node, count: int, consumers: Mapping[str, list[Node]], fixed: set[str]
) -> _Reach | None:
    """None where a channel can't be removed."""
    reach, done = _Reach(), set[int]()
    reach.tensors[conv.outputs[0]] = False
    pending = [conv.outputs[0]]
    waiting: dict[int, Node] = {}
    while pending:
        name = pending.pop()
        if name in fixed:
            return None
        for node in consumers.get(name, ()):
            if id(node) in done:
                continue
            if name in node.captures or node.domain:
                return None
            verdict = _follow(graph, node, name, count, reach)
            if verdict is None:
                return None
            if verdict == "wait":
                waiting[id(node)] = node
                continue
            waiting.pop(id(node), None)
            done.add(id(node))
            pending += [output for output in node.outputs[:1] if output in reach.tensors]
    return None if waiting or not reach.readers else reach


def _follow(graph: Graph, node: Node, name: str, count: int, reach: _Reach) -> str | None:
    """Takes one reader into `reach`: "done", "wait" for its other input, or None where it is unsafe."""
    bare = reach.tensors[name]
    first = bool(node.inputs) and node.inputs[0] == name
    others = node.inputs[1:]
    match node.op:
        case op if op in _CHANNEL_WISE:
            if not first or name in others or any(node.outputs[1:]):
                return None
            reach.tensors[node.outputs[0]] = bare or op.startswith("Global")
        case "Flatten" if bare and node.attributes.get("axis", 1) == 1:
            reach.tensors[node.outputs[0]] = True
        case op if op in _BINARY and len(node.inputs) == 2:
            return _follow_binary(graph, node, count, reach)
        case "BatchNormalization":
            if not first or any(node.outputs[1:]) or not all(i in graph.constants for i in others):
                return None
            reach.arrays += [(node, index, 0) for index in range(1, 5)]
            reach.tensors[node.outputs[0]] = bare
        case "Conv":
            return _follow_conv(graph, node, name, count, reach)
        case "Gemm" | "MatMul":
            weights = graph.constants.get(node.input(1))
            if not bare or not first or weights is None or weights.ndim != 2 or name in others:
                return None
            if node.op == "Gemm" and node.attributes.get("transA", 0):
                return None
            axis = 1 if node.op == "Gemm" and node.attributes.get("transB", 0) else 0
            if weights.shape[axis] != count:
                return None
            reach.readers.append((node, 1, axis))
        case _:
            return None
    return "done"


def _follow_binary(graph: Graph, node: Node, count: int, reach: _Reach) -> str | None:
    constants = [index for index, name in enumerate(node.inputs) if name in graph.constants]
    if not constants:
        known = [name in reach.tensors for name in node.inputs]
        if not all(known):
            return "wait"
        reach.tensors[node.outputs[0]] = all(reach.tensors[name] for name in node.inputs)
        return "done"
    (index,) = constants[:1]
    array = graph.constants[node.inputs[index]]
    if array.size != 1:
        axis = next((axis for axis, size in enumerate(array.shape) if size == count), None)
        # [c, 1, 1] or [1, c, 1, 1]: the channel is the second dimension of four
        if axis is None or array.size != count or axis - array.ndim != -3:
            return None
        reach.arrays.append((node, index, axis))
    reach.tensors[node.outputs[0]] = reach.tensors[node.inputs[1 - index]]
    return "done"


def _follow_conv(graph: Graph, node: Node, name: str, count: int, reach: _Reach) -> str | None:
    weights = graph.constants.get(node.input(1))
    if node.inputs[0] != name or weights is None or name in node.inputs[1:]:
        return None
    group = int(node.attributes.get("group", 1))
    if group == 1:
        reach.readers.append((node, 1, 1))
        return "done"
    if group != count or weights.shape[:2] != (count, 1):
        return None
    if node.input(2) and node.input(2) not in graph.constants:
        return None
    reach.arrays += [(node, index, 0) for index in (1, 2) if node.input(index)]
    reach.depthwise.append(node)
    reach.tensors[node.outputs[0]] = False
    return "done"


def _importance(graph: Graph, weights: Array, reach: _Reach) -> Array:
    own = np.linalg.norm(weights.reshape(len(weights), -1), axis=1)
    for node in reach.depthwise:
        own = own * np.linalg.norm(graph.constants[node.inputs[1]].reshape(len(weights), -1), axis=1)
    read = np.zeros(len(weights))
    for node, index, axis in reach.readers:
        array = np.moveaxis(graph.constants[node.inputs[index]], axis, 0)
        read += np.square(array.reshape(len(weights), -1)).sum(axis=1)
    return np.asarray(own * np.sqrt(read))


def _cut(graph: Graph, conv: Node, reach: _Reach, kept: Array, mark: str) -> None:
    """Takes the kept channels out of every constant, under new names: others may read the old ones."""
    own = [(conv, index, 0) for index in (1, 2) if conv.input(index)]
    for node, index, axis in [*own, *reach.arrays, *reach.readers]:
        name = node.inputs[index]
        graph.constants[f"{name}:{mark}"] = graph.constants[name].take(kept, axis)
        node.inputs[index] = f"{name}:{mark}"
    for node in reach.depthwise:
        node.attributes["group"] = len(kept)
