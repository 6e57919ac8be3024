"""The passes in their order."""

from __future__ import annotations

from gpu_inference.graph.ir import Graph
from gpu_inference.graph.passes.batch_norm import fuse_batch_norm, fuse_pads
from gpu_inference.graph.passes.constants import fold_constants
from gpu_inference.graph.passes.dead_code import remove_dead_code
from gpu_inference.graph.passes.epilogues import fuse_epilogues
from gpu_inference.graph.passes.half_regions import narrow_regions
from gpu_inference.graph.passes.halves import widen_halves


def optimise(graph: Graph, *, half_activations: bool = False) -> Graph:
    """Rewrites `graph` in place, and returns it.

    Args:
        graph: as it was imported.
        half_activations: store tensors between convolutions as float16.
    """
    widen_halves(graph)
    fold_constants(graph)
    fuse_pads(graph)
    fuse_batch_norm(graph)
    fuse_epilogues(graph)
    if half_activations:
        narrow_regions(graph)
    remove_dead_code(graph)
    return graph
