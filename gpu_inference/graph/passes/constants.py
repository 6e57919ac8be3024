"""Nodes that read constants only are evaluated once, when the model is loaded."""

from __future__ import annotations

from collections.abc import Collection

from gpu_inference.graph import folding
from gpu_inference.graph.ir import Graph, Node


def fold_constants(graph: Graph, keep: Collection[str] = ("Expand", "Tile")) -> None:
    """Replaces nodes of constants by constants, as far as the host has a function for them.

    Args:
        graph: changed in place.
        keep: operators that stay: by default those whose result is much larger than what makes it, which is
            better made on the device.
    """
    kept: list[Node] = []
    for node in graph.nodes:
        names = node.inputs
        if all(not name or name in graph.constants for name in names) and node.op not in keep:
            arrays = [graph.constants[name] if name else None for name in names]
            results = folding.evaluate(node, arrays)
            if results is not None:
                graph.constants.update(
                    {name: array for name, array in zip(node.outputs, results, strict=False) if name}
                )
                continue
        kept.append(node)
    graph.nodes = kept
