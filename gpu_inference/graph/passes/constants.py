"""Nodes that read constants only are evaluated once, when the model is loaded."""

from __future__ import annotations

from gpu_inference.graph import folding
from gpu_inference.graph.ir import Graph, Node


def fold_constants(graph: Graph) -> None:
    """Replaces nodes of constants by constants, as far as the host has a function for them."""
    kept: list[Node] = []
    for node in graph.nodes:
        names = node.inputs
        # a result much larger than what makes it (ConstantOfShape, Expand) is better made on the device
        if all(not name or name in graph.constants for name in names) and node.op not in ("Expand", "Tile"):
            arrays = [graph.constants[name] if name else None for name in names]
            results = folding.evaluate(node, arrays)
            if results is not None:
                graph.constants.update(
                    {name: array for name, array in zip(node.outputs, results, strict=False) if name}
                )
                continue
        kept.append(node)
    graph.nodes = kept
