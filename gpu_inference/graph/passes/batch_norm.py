"""Batch normalisation, and constant padding, taken into the convolution beside them."""

from __future__ import annotations

import numpy as np

from gpu_inference.graph.ir import Array, Graph, Node
from gpu_inference.graph.passes.rewriting import Readers, remove


def fuse_batch_norm(graph: Graph) -> None:
    """Conv then BatchNormalization becomes one Conv: weights scaled a channel, bias shifted."""
    readers, gone = Readers(graph), set[int]()
    for node in graph.nodes:
        if node.op not in ("Conv", "ConvTranspose") or node.domain:
            continue
        norm = readers.only(node.outputs[0])
        if norm is None or norm.op != "BatchNormalization" or norm.inputs[0] != node.outputs[0]:
            continue
        numbers = [readers.constant(name) for name in norm.inputs[1:5]]
        weights, bias = readers.constant(node.inputs[1]), _bias(node, readers)
        extra = [name for name in norm.outputs[1:] if name]
        if weights is None or bias is None or any(n is None for n in numbers) or extra:
            continue
        if norm.attributes.get("training_mode", 0) or weights.dtype not in (np.float32, np.float64):
            continue
        scale, shift, mean, variance = (np.asarray(n, np.float64) for n in numbers)
        factor = scale / np.sqrt(variance + float(norm.attributes.get("epsilon", 1e-5)))
        merged = shift + (bias - mean) * factor
        scaled = _scale(node, weights, factor)
        stem = norm.outputs[0]
        graph.constants[f"{stem}:weights"] = scaled.astype(weights.dtype)
        graph.constants[f"{stem}:bias"] = merged.astype(weights.dtype)
        node.inputs = [node.inputs[0], f"{stem}:weights", f"{stem}:bias"]
        node.outputs = [norm.outputs[0]]
        gone.add(id(norm))
    remove(graph, gone)


def _bias(node: Node, readers: Readers) -> Array | None:
    if node.input(2):
        return readers.constant(node.inputs[2])
    return np.zeros(1)


def _scale(node: Node, weights: Array, factor: Array) -> Array:
    if node.op == "Conv":
        return np.asarray(weights * factor.reshape(-1, *(1,) * (weights.ndim - 1)))
    groups = int(node.attributes.get("group", 1))
    inputs, outputs = weights.shape[:2]
    split = weights.reshape(groups, inputs // groups, outputs, *weights.shape[2:])
    per_group = factor.reshape(groups, 1, outputs, *(1,) * (weights.ndim - 2))
    return np.asarray(split * per_group).reshape(weights.shape)


def fuse_pads(graph: Graph) -> None:
    """A Pad of zeros around the image before a Conv becomes the Conv's own padding."""
    readers, gone = Readers(graph), set[int]()
    for pad in graph.nodes:
        if pad.op != "Pad" or pad.domain or pad.attributes.get("mode", "constant") != "constant":
            continue
        conv = readers.only(pad.outputs[0])
        amounts = readers.constant(pad.input(1))
        value = readers.constant(pad.input(2)) if pad.input(2) else np.zeros(1)
        if (
            conv is None
            or conv.op != "Conv"
            or amounts is None
            or value is None
            or value.any()
            or pad.input(3)
        ):
            continue
        if conv.inputs[0] != pad.outputs[0] or conv.attributes.get("auto_pad", "NOTSET") != "NOTSET":
            continue
        rank = amounts.size // 2
        before, after = amounts[:rank], amounts[rank:]
        if before[:2].any() or after[:2].any() or (amounts < 0).any():
            continue
        own = np.asarray(conv.attributes.get("pads") or [0] * (2 * (rank - 2)))
        conv.attributes["pads"] = [int(p) for p in own + np.concatenate([before[2:], after[2:]])]
        conv.inputs[0] = pad.inputs[0]
        gone.add(id(pad))
    remove(graph, gone)
