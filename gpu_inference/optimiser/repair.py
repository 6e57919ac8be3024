"""What pruning and rounding shift, shifted back: each channel gets the mean and spread that it had.

Layer by layer from the input on, a channel's weights and bias are scaled so that its output has the
original's mean and standard deviation on the data (Jordan et al., "REPAIR: REnormalizing Permuted
Activations for Interpolation Repair", ICLR 2023; for quantised weights: Nagel et al., "Data-Free Quantization
Through Weight Equalization and Bias Correction", ICCV 2019). Nothing is trained; zeros and integers stay what
they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import ModelProto, TensorProto, helper

from gpu_inference.graph.exporter import export_model
from gpu_inference.graph.importer import import_graph
from gpu_inference.graph.ir import Array, Graph, Node, TensorInfo
from gpu_inference.graph.passes.dead_code import remove_dead_code
from gpu_inference.optimiser.loading import to_bytes
from gpu_inference.session import load

#: Rows are enough for means; more cost time.
_ROWS: Final = 32
#: Scales beyond these would blow up what is nearly dead.
_SCALES: Final = (0.2, 5.0)


@dataclass(frozen=True, slots=True)
class _Moments:
    """Of a tensor's channels over everything else: float64 [channels]."""

    mean: Array
    spread: Array


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer that can be scaled.

    Attributes:
        node: of the layer.
        scaled: the constant to be multiplied by channel.
        axis: of the channels there.
        bias: what is added now.
    """

    node: Node
    scaled: str
    axis: int
    bias: Array


def repair(model: ModelProto, original: ModelProto, pieces: Sequence[Mapping[str, Array]]) -> ModelProto:
    """The model with the channels of its layers brought back to the original's moments.

    Args:
        model: whose convolutions and products have the names that they have in `original`.
        original: after the same folding.
        pieces: inputs of some runs.
    """
    graph, before = import_graph(model), import_graph(original)
    there = {node.outputs[0] for node in before.nodes}
    layers = [layer for layer in _layers(graph) if layer.node.outputs[0] in there]
    if not layers:
        return model
    few = _few(pieces)
    names = [layer.node.outputs[0] for layer in layers]
    wanted = _moments(before, original, names, few)
    for layer in layers:
        name = layer.node.outputs[0]
        found = _moments(graph, model, [name], few)[name]
        if found.mean.shape == wanted[name].mean.shape:
            _shift(graph, layer, found, wanted[name])
    remove_dead_code(graph)
    return export_model(graph, model)


def _few(pieces: Sequence[Mapping[str, Array]]) -> list[Mapping[str, Array]]:
    taken: list[Mapping[str, Array]] = []
    rows = 0
    for piece in pieces:
        if taken and rows >= _ROWS:
            break
        taken.append(piece)
        rows += max((len(array) for array in piece.values() if array.ndim), default=1)
    return taken


def _layers(graph: Graph) -> list[_Layer]:
    makers, consumers = graph.producers(), graph.consumers()
    found = []
    for node in graph.nodes:
        if node.domain or node.op not in ("Conv", "Gemm"):
            continue
        scaled, axis = node.input(1), 0 if node.op == "Conv" or node.attributes.get("transB", 0) else 1
        maker = makers.get(scaled)
        if maker is not None and maker.op == "DequantizeLinear":
            scaled, axis = maker.input(1), 0
        elif maker is not None and maker.op == "Cast":
            scaled = maker.input(0)
        bias = _value(graph, makers, node.input(2)) if node.input(2) else np.zeros(1)
        if scaled not in graph.constants or bias is None or bias.ndim > 1:
            continue
        if any(len(consumers[name]) != 1 for name in {scaled, node.input(1)}):  # others read it too
            continue
        array = graph.constants[scaled]
        if array.ndim <= axis or not np.issubdtype(array.dtype, np.floating):
            continue
        found.append(_Layer(node, scaled, axis, bias.reshape(-1).astype(np.float64)))
    return found


def _value(graph: Graph, makers: Mapping[str, Node], name: str) -> Array | None:
    maker = makers.get(name)
    return graph.constants.get(maker.input(0) if maker is not None and maker.op == "Cast" else name)


def _shift(graph: Graph, layer: _Layer, found: _Moments, wanted: _Moments) -> None:
    alive = (found.spread > 1e-6) & (wanted.spread > 1e-6)
    scale = np.where(alive, wanted.spread / np.where(alive, found.spread, 1), 1.0).clip(*_SCALES)
    array = graph.constants[layer.scaled]
    shape = [-1 if axis == layer.axis else 1 for axis in range(array.ndim)]
    graph.constants[layer.scaled] = (array * scale.reshape(shape)).astype(array.dtype)
    beta = float(layer.node.attributes.get("beta", 1.0)) if layer.node.op == "Gemm" else 1.0
    bias = layer.bias * scale + (wanted.mean - scale * found.mean) / (beta or 1.0)
    name = f"{layer.node.outputs[0]}:repaired"
    graph.constants[name] = bias.astype(np.float32)
    layer.node.inputs = [*layer.node.inputs[:2], name]


def _moments(
    graph: Graph, like: ModelProto, names: Sequence[str], pieces: Sequence[Mapping[str, Array]]
) -> dict[str, _Moments]:
    """Runs what makes some tensors, and no more, on onnxruntime."""
    outputs = [TensorInfo(name, np.dtype(np.float32), None) for name in names]
    part = Graph(list(graph.nodes), graph.inputs, outputs, dict(graph.constants), graph.opset)
    template = ModelProto()
    template.CopyFrom(like)
    template.graph.ClearField("output")
    template.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    remove_dead_code(part)
    session = load(to_bytes(export_model(part, template)), "onnxruntime", "CPUExecutionProvider")
    sums: dict[str, list[Array]] = {name: [] for name in names}
    counts = dict.fromkeys(names, 0)
    try:
        for piece in pieces:
            for name, array in session.run(piece).items():
                axes = tuple(axis for axis in range(array.ndim) if axis != 1)
                wide = array.astype(np.float64)
                sums[name].append(np.stack([wide.sum(axis=axes), np.square(wide).sum(axis=axes)]))
                counts[name] += array.size // array.shape[1]
    finally:
        session.close()
    moments = {}
    for name in names:
        mean, square = np.sum(sums[name], axis=0) / counts[name]
        moments[name] = _Moments(mean, np.sqrt(np.maximum(square - mean**2, 0)))
    return moments
