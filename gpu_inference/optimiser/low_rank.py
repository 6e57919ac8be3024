"""Low rank: a layer becomes two or three smaller ones where its weights have few strong directions.

Products and 1x1 convolutions by singular values; larger convolutions by Tucker's decomposition of both
channel axes (Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
Applications", ICLR 2016), from the singular vectors of its unfoldings. A layer is left alone where the parts
would be no smaller. Random weights have no strong directions: this is for trained models.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import ModelProto

from gpu_inference.graph.exporter import export_model
from gpu_inference.graph.importer import import_graph
from gpu_inference.graph.ir import Array, Graph, Node
from gpu_inference.graph.passes.dead_code import remove_dead_code
from gpu_inference.optimiser.loading import Weight, weights_of

#: Attributes of a convolution's window, which one part takes.
_WINDOW: Final[tuple[str, ...]] = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")


def decompose(model: ModelProto, energy: float) -> ModelProto:
    """Layers in parts that keep the share `energy` of the squares of their weights.

    Args:
        model: in float32.
        energy: above 0, at most 1; 1 keeps everything but what rounding made.
    """
    graph = import_graph(model)
    parts = {id(weight.node): _parts(graph, weight, energy) for weight in _layers(graph)}
    graph.nodes = [part for node in graph.nodes for part in parts.get(id(node)) or [node]]
    remove_dead_code(graph)
    return export_model(graph, model)


def _layers(graph: Graph) -> list[Weight]:
    # two nodes with the same weights would need two times the parts
    readers = graph.consumers()
    return [weight for weight in weights_of(graph) if len(readers[weight.name]) == 1]


def _parts(graph: Graph, weight: Weight, energy: float) -> list[Node] | None:
    node, array = weight.node, graph.constants[weight.name].astype(np.float64)
    match node.op:
        case "MatMul" | "Gemm" if array.ndim == 2:
            return _product(graph, weight, array, energy)
        case "Conv" if node.attributes.get("group", 1) == 1:
            pointwise = int(np.prod(array.shape[2:])) == 1
            return (_pointwise if pointwise else _tucker)(graph, weight, array, energy)
    return None


def strongest(array: Array, energy: float) -> tuple[Array, Array, Array]:
    """The singular vectors u [m, r], values [r] and vectors v [r, n] that keep the share `energy`.

    Args:
        array: [m, n].
        energy: of the squares.
    """
    if array.shape[0] > array.shape[1]:
        v, values, u = strongest(array.T, energy)
        return u.T, values, v.T
    # by the eigenvalues of the smaller product: unfoldings are wide, and a tenth of the time of svd
    squares, u = np.linalg.eigh(array @ array.T)
    squares, u = np.maximum(squares[::-1], 1e-300), u[:, ::-1]
    values = np.sqrt(squares)
    kept = np.cumsum(squares)
    # what float32 rounding made of a product of low rank is no direction of its own
    enough = min(energy, 1 - 1e-10) * kept[-1]
    rank = min(int(np.searchsorted(kept, enough)) + 1, len(values))
    return u[:, :rank], values[:rank], (u[:, :rank].T @ array) / values[:rank, None]


def _product(graph: Graph, weight: Weight, array: Array, energy: float) -> list[Node] | None:
    node, flipped = weight.node, weight.axis == 0
    u, values, v = strongest(array.T if flipped else array, energy)
    root = np.sqrt(values)
    first, second = _constants(graph, weight.name, u * root, root[:, None] * v)
    if first is None or second is None:
        return None
    middle = f"{node.outputs[0]}:low"
    name = f"{node.name}:low"
    if node.op == "MatMul":
        return [
            Node("MatMul", [node.inputs[0], first], [middle], {}, name),
            Node("MatMul", [middle, second], node.outputs, {}, node.name),
        ]
    turned = {"transA": node.attributes["transA"]} if "transA" in node.attributes else {}
    rest = {key: value for key, value in node.attributes.items() if key in ("alpha", "beta")}
    return [
        Node("Gemm", [node.inputs[0], first], [middle], turned, name),
        Node("Gemm", [middle, second, *node.inputs[2:]], node.outputs, rest, node.name),
    ]


def _pointwise(graph: Graph, weight: Weight, array: Array, energy: float) -> list[Node] | None:
    node, ones = weight.node, (1,) * (array.ndim - 2)
    u, values, v = strongest(array.reshape(array.shape[:2]), energy)
    root = np.sqrt(values)
    inner, outer = root[:, None] * v, u * root
    first, second = _constants(
        graph, weight.name, inner.reshape(*inner.shape, *ones), outer.reshape(*outer.shape, *ones)
    )
    if first is None or second is None:
        return None
    window = {key: node.attributes[key] for key in _WINDOW if key in node.attributes}
    middle = f"{node.outputs[0]}:low"
    return [
        Node("Conv", [node.inputs[0], first], [middle], window, f"{node.name}:low"),
        Node("Conv", [middle, second, *node.inputs[2:]], node.outputs, {}, node.name),
    ]


def _tucker(graph: Graph, weight: Weight, array: Array, energy: float) -> list[Node] | None:
    node, ones = weight.node, (1,) * (array.ndim - 2)
    outputs, inputs = array.shape[:2]
    each = (1 + energy) / 2  # what both axes lose adds up
    left, _, _ = strongest(array.reshape(outputs, -1), each)
    right, _, _ = strongest(np.moveaxis(array, 1, 0).reshape(inputs, -1), each)
    core = np.einsum("oi...,or,is->rs...", array, left, right)
    names = _constants(
        graph,
        weight.name,
        right.T.reshape(-1, inputs, *ones),
        core,
        left.reshape(outputs, -1, *ones),
    )
    if names[0] is None:
        return None
    window = {key: node.attributes[key] for key in _WINDOW if key in node.attributes}
    low, high = f"{node.outputs[0]}:low", f"{node.outputs[0]}:core"
    first, second, third = (str(name) for name in names)
    # zeros around the image stay zeros in the first part, which has no bias
    return [
        Node("Conv", [node.inputs[0], first], [low], {}, f"{node.name}:low"),
        Node("Conv", [low, second], [high], window, f"{node.name}:core"),
        Node("Conv", [high, third, *node.inputs[2:]], node.outputs, {}, node.name),
    ]


def _constants(graph: Graph, name: str, *parts: Array) -> list[str | None]:
    """Names of the parts; None for each where together they are no smaller than the whole."""
    if sum(part.size for part in parts) >= graph.constants[name].size:
        return [None] * len(parts)
    names: list[str | None] = []
    for number, part in enumerate(parts):
        names.append(f"{name}:part{number}")
        graph.constants[f"{name}:part{number}"] = part.astype(np.float32)
    return names
