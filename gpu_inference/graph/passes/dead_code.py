"""Nodes whose results nobody reads."""

from __future__ import annotations

from gpu_inference.graph.ir import Graph, Node


def remove_dead_code(graph: Graph) -> None:
    """Drops nodes and constants that no output depends on."""
    needed = graph.output_names()
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(name in needed for name in node.outputs if name):
            kept.append(node)
            needed.update(node.reads)
    graph.nodes = kept[::-1]
    graph.constants = {name: array for name, array in graph.constants.items() if name in needed}
