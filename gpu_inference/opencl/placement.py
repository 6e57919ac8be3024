"""Which tensors can be computed right in their place in the result of a concatenation.

Channels last, a concatenation of channels is its inputs side by side in every pixel. So what makes an input
can write it there, with the result's channels as pitch, and the concatenation itself is nothing. Places are
found before planning, from channel counts alone, the last concatenation first:

- an input of a concatenation that has a place itself (DenseNet's nested form) lies in the wider result;
- a concatenation whose inputs lie side by side in a later one already (DenseNet's flat form) is part of it.

Whether a tensor really goes there is decided when it is planned: what can't write channels last is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gpu_inference.graph.ir import Array, Graph, Node

# Operators whose result has as many channels as their first input.
_KEEP_CHANNELS: Final = frozenset(
    {
        *("AveragePool", "LpPool", "MaxPool", "BatchNormalization", "LRN", "Dropout", "Identity", "Resize"),
        *("Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu"),
        *("Sigmoid", "Swish", "Tanh", "Abs", "Ceil", "Celu", "Cos", "Erf", "Exp", "Floor", "Log", "Neg"),
        *("Reciprocal", "Round", "Selu", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "ThresholdedRelu"),
    }
)
_BROADCAST: Final = frozenset({"Add", "Div", "Mul", "Sub", "Max", "Min", "Sum"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a concatenation's result.

    Attributes:
        root: name of the result, which has memory of its own.
        offset: channels before it.
        channels: its own.
        total: channels of the root.
    """

    root: str
    offset: int
    channels: int
    total: int


def concatenation_places(graph: Graph) -> dict[str, Place]:
    """A place for every tensor that can have one, the results of concatenations included."""
    channels = _channels(graph)
    produced = graph.producers()
    places: dict[str, Place] = {}
    for node in reversed(graph.nodes):
        if not _along_channels(node):
            continue
        output, counts = node.outputs[0], [channels.get(name) for name in node.inputs]
        if any(not count or count % 4 for count in counts):
            continue
        sizes = [count for count in counts if count is not None]
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        if output not in places:
            known = [places.get(name) for name in node.inputs]
            places[output] = _side_by_side(known, offsets, sum(sizes)) or Place(
                output, 0, sum(sizes), sum(sizes)
            )
        base = places[output]
        for name, offset, size in zip(node.inputs, offsets, sizes, strict=True):
            if name in produced and name not in places:
                places[name] = Place(base.root, base.offset + offset, size, base.total)
    return places


def _along_channels(node: Node) -> bool:
    axis = node.attributes.get("axis", 1)
    return node.op == "Concat" and not node.domain and len(node.inputs) > 1 and axis in (1, -3)


def _side_by_side(known: list[Place | None], offsets: list[int], total: int) -> Place | None:
    """The place that the inputs make up together, where they have one."""
    first = known[0]
    if first is None:
        return None
    for place, offset in zip(known, offsets, strict=True):
        if place is None or place.root != first.root or place.offset != first.offset + offset:
            return None
    return Place(first.root, first.offset, total, first.total)


def _channels(graph: Graph) -> dict[str, int]:
    """Dimension 1 of the tensors for which it follows from the graph."""
    found: dict[str, int] = {}
    for info in graph.inputs:
        if info.shape is not None and len(info.shape) > 1 and info.shape[1] is not None:
            found[info.name] = info.shape[1]
    for node in graph.nodes:
        count = _channels_of(node, found, graph.constants)
        if count is not None and node.outputs and not node.domain:
            found[node.outputs[0]] = count
    return found


def _channels_of(node: Node, found: dict[str, int], constants: dict[str, Array]) -> int | None:
    weights = constants.get(node.input(1))
    if node.op == "Conv":
        return int(weights.shape[0]) if weights is not None else None
    if node.op == "ConvTranspose":
        return int(weights.shape[1]) * int(node.attributes.get("group", 1)) if weights is not None else None
    if node.op in _KEEP_CHANNELS:
        return found.get(node.input(0))
    counts = [found.get(name) for name in node.inputs]
    if node.op in _BROADCAST:
        tensors = [count for name, count in zip(node.inputs, counts, strict=True) if name not in constants]
        return None if None in tensors else max((count for count in tensors if count), default=None)
    if _along_channels(node):
        return None if None in counts else sum(count for count in counts if count)
    return None
