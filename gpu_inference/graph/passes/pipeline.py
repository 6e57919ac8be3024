"""The passes in their order."""

from __future__ import annotations

from gpu_inference.graph.ir import Graph
from gpu_inference.graph.passes.constants import fold_constants
from gpu_inference.graph.passes.dead_code import remove_dead_code


def optimise(graph: Graph) -> Graph:
    """Rewrites `graph` in place, and returns it."""
    fold_constants(graph)
    remove_dead_code(graph)
    return graph
