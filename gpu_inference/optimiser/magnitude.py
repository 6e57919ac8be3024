"""Magnitude pruning: the smallest weights become zero.

The model keeps its shape: it is smaller where zeros are not stored (`sparse`, or any compression), and no
faster.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto

from gpu_inference.graph.exporter import export_model
from gpu_inference.graph.importer import import_graph
from gpu_inference.graph.ir import Array
from gpu_inference.optimiser.loading import weights_of


def prune_globally(model: ModelProto, sparsity: float) -> ModelProto:
    """Zeroes the share `sparsity` of all weights: those smallest beside the others of their layer.

    Magnitudes are taken by each layer's root mean square, else layers with small numbers would lose all.
    """
    graph = import_graph(model)
    names = [weight.name for weight in weights_of(graph)]
    scaled = {name: _relative(graph.constants[name]) for name in names}
    if names:
        everything = np.concatenate([scaled[name].reshape(-1) for name in names])
        keep = smallest_kept(everything, sparsity)
        for name in names:
            graph.constants[name] = np.where(scaled[name] >= keep, graph.constants[name], np.float32(0))
    return export_model(graph, model)


def prune_layers(model: ModelProto, sparsity: float | Mapping[str, float]) -> ModelProto:
    """Zeroes the smallest weights of each layer.

    Args:
        model: in float32.
        sparsity: the share of each, or of each by the name of its constant; layers without one are left.
    """
    graph = import_graph(model)
    for weight in weights_of(graph):
        share = sparsity if isinstance(sparsity, float) else sparsity.get(weight.name, 0.0)
        array = graph.constants[weight.name]
        size = np.abs(array)
        graph.constants[weight.name] = np.where(size >= smallest_kept(size, share), array, np.float32(0))
    return export_model(graph, model)


def smallest_kept(sizes: Array, sparsity: float) -> float:
    """The magnitude below which the share `sparsity` of the elements lies."""
    gone = min(int(sparsity * sizes.size), sizes.size - 1)
    return float(np.partition(sizes.reshape(-1), gone)[gone])


def _relative(array: Array) -> Array:
    return np.asarray(np.abs(array) / max(float(np.sqrt(np.mean(np.square(array)))), 1e-30))
