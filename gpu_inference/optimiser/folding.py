"""What costs nothing: constants computed, norms and paddings taken into convolutions, dead code dropped."""

from __future__ import annotations

from typing import Final

from onnx import ModelProto

from gpu_inference.graph.exporter import export_model
from gpu_inference.graph.importer import import_graph
from gpu_inference.graph.ir import Graph
from gpu_inference.graph.passes.batch_norm import fuse_batch_norm, fuse_pads
from gpu_inference.graph.passes.constants import fold_constants
from gpu_inference.graph.passes.dead_code import remove_dead_code

#: Folding these would undo a smaller storage of weights, or make the file larger.
_KEPT: Final = ("Expand", "Tile", "ConstantOfShape", "Range", "Cast", "DequantizeLinear")


def fold(model: ModelProto) -> ModelProto:
    """The model that computes the same with fewer nodes."""
    graph = import_graph(model)
    fold_constants(graph, _KEPT)
    _skip_identities(graph)
    fuse_pads(graph)
    fuse_batch_norm(graph)
    remove_dead_code(graph)
    return export_model(graph, model)


def _skip_identities(graph: Graph) -> None:
    """Readers of an Identity, or of a Dropout that trains nothing, read what it reads."""
    outputs, captured = graph.output_names(), {name for node in graph.nodes for name in node.captures}
    stands_for: dict[str, str] = {}
    for node in graph.nodes:
        node.inputs = [stands_for.get(name, name) for name in node.inputs]
        idle = node.op == "Identity" or (
            node.op == "Dropout" and len(node.inputs) < 3 and not any(node.outputs[1:])
        )
        if idle and not node.domain and node.outputs[0] not in outputs | captured:
            stands_for[node.outputs[0]] = node.inputs[0]
