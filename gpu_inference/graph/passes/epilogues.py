"""Bias, residual and activation after a convolution or matrix product, taken into its epilogue.

The merged node stands where the last node that it takes in stood, so that the residual exists by then. Its
attributes say what it does at its end:

    activation: (kind, p0, p1) as in opencl.epilogue.Epilogue
    residual: "before" or "after" the activation; the tensor is the node's last input
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from gpu_inference.graph.ir import Graph, Node
from gpu_inference.graph.passes.rewriting import Readers

Activation: TypeAlias = tuple[str, float, float]

RESIDUAL_INPUT = 3


def fuse_epilogues(graph: Graph) -> None:
    """Merges what follows each Conv, Gemm and MatMul, as far as its epilogue can do it."""
    readers = Readers(graph)
    at = {id(node): position for position, node in enumerate(graph.nodes)}
    order: dict[int, Node] = {at[id(node)]: node for node in graph.nodes}
    for node in list(graph.nodes):
        if node.op not in ("Conv", "Gemm", "MatMul") or node.domain:
            continue
        while (merged := _step(graph, node, readers)) is not None:
            last = max(merged, key=lambda n: at[id(n)])
            for gone in merged:
                order.pop(at[id(gone)], None)
                for name in gone.inputs:
                    readers.moved(name, gone, node)
            order.pop(at[id(node)], None)
            at[id(node)] = at[id(last)]
            order[at[id(node)]] = node
    graph.nodes = [order[position] for position in sorted(order)]


def _step(graph: Graph, node: Node, readers: Readers) -> list[Node] | None:
    """Merges one more operation into `node`; the nodes that it replaces."""
    y = node.outputs[0]
    active = "activation" in node.attributes
    after = readers.only(y)
    if not active:
        pair = _silu(y, readers)
        if pair is not None:
            node.attributes["activation"] = ("silu", 0.0, 0.0)
            node.outputs = [pair[1].outputs[0]]
            return pair
    if after is None or after.domain:
        return None
    if not active and (activation := _activation(after, readers)) is not None:
        node.attributes["activation"] = activation
        node.outputs = [after.outputs[0]]
        return [after]
    if after.op != "Add":
        return None
    other = after.inputs[1] if after.inputs[0] == y else after.inputs[0]
    constant = readers.constant(other)
    if constant is not None:
        bare = not active and "residual" not in node.attributes and not node.input(2)
        if node.op == "MatMul" and bare and constant.ndim == 1 and constant.dtype == np.float32:
            node.inputs += [other] if len(node.inputs) == 2 else []
            node.outputs = [after.outputs[0]]
            return [after]
        return None
    if "residual" in node.attributes or node.op == "Gemm":
        return None
    node.attributes["residual"] = "after" if active else "before"
    node.inputs += [""] * (RESIDUAL_INPUT - len(node.inputs)) + [other]
    node.outputs = [after.outputs[0]]
    return [after]


def _silu(y: str, readers: Readers) -> list[Node] | None:
    """Sigmoid and Mul that are y * sigmoid(y)."""
    both = readers.all(y)
    if len(both) != 2 or {node.op for node in both} != {"Sigmoid", "Mul"}:
        return None
    sigmoid, mul = sorted(both, key=lambda node: node.op, reverse=True)
    if readers.only(sigmoid.outputs[0]) is not mul:
        return None
    return [sigmoid, mul]


def _activation(node: Node, readers: Readers) -> Activation | None:
    a: dict[str, Any] = node.attributes
    match node.op:
        case "Relu":
            return "clip", 0.0, math.inf
        case "Clip":
            bounds = []
            for index, default in ((1, -math.inf), (2, math.inf)):
                bound = readers.constant(node.input(index)) if node.input(index) else np.asarray(default)
                if bound is None or bound.size != 1:
                    return None
                bounds.append(float(bound.reshape(-1)[0]))
            return "clip", bounds[0], bounds[1]
        case "LeakyRelu":
            return "leaky_relu", float(a.get("alpha", 0.01)), 0.0
        case "Sigmoid":
            return "sigmoid", 0.0, 0.0
        case "Tanh":
            return "tanh", 0.0, 0.0
        case "HardSwish":
            return "hardswish", 0.0, 0.0
        case "HardSigmoid":
            return "hard_sigmoid", float(a.get("alpha", 0.2)), float(a.get("beta", 0.5))
        case "Elu":
            return "elu", float(a.get("alpha", 1.0)), 0.0
        case "Swish" if float(a.get("alpha", 1.0)) == 1.0:
            return "silu", 0.0, 0.0
    return None
