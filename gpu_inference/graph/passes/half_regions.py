"""Tensors between convolutions stored as float16: half the memory and half the traffic of a region.

A region begins at a convolution and goes on through what keeps the size of numbers: other convolutions and
products, pooling, resizing, activations, sums, concatenations. Everything else reads and writes float32,
through casts.
Kernels compute in float32 and round what they store, so that an element is off by 2^-11 of itself after each
node, and overflows beyond 65504.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import TensorProto

from gpu_inference.graph.ir import Graph, Node
from gpu_inference.graph.passes.epilogues import RESIDUAL_INPUT

_LARGEST: Final = 65504.0
_ALONE: Final = frozenset(
    {
        *("Relu", "Clip", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Swish"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization", "Resize"),
        *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "DepthToSpace", "SpaceToDepth"),
    }
)
_TOGETHER: Final = frozenset({"Add", "Sub", "Mul", "Sum", "Concat"})
_PRODUCTS: Final = frozenset({"Conv", "Gemm", "MatMul"})


def narrow_regions(graph: Graph) -> None:
    """Rewrites a graph whose other passes are done; its inputs and outputs keep their types."""
    _Narrowing(graph).run()


class _Narrowing:
    """One walk through a graph. A narrow tensor has a name of its own; its old name is the cast one's."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes: list[Node] = []
        self._narrow: dict[str, str] = {}
        self._wide: set[str] = set()

    def run(self) -> None:
        for node in self._graph.nodes:
            data = self._data(node)
            if data is None:
                for name in node.reads:
                    self._widen(name)
            else:
                for index in data:
                    node.inputs[index] = self._as_half(node.inputs[index])
                name = node.outputs[0]
                node.outputs[0] = self._narrow[name] = f"{name}:half"
            self._nodes.append(node)
        for output in self._graph.outputs:
            self._widen(output.name)
        self._graph.nodes = self._nodes

    def _data(self, node: Node) -> list[int] | None:
        """The inputs that become float16 where the node can go on with them; None where it can't."""
        if node.domain or any(node.outputs[1:]):
            return None
        if node.op in _PRODUCTS:
            return self._product(node)
        if node.op in _ALONE or (node.op == "ConvTranspose" and node.input(1) in self._graph.constants):
            return [0] if node.inputs[0] in self._narrow else None
        if node.op not in _TOGETHER or not any(name in self._narrow for name in node.inputs):
            return None
        fit = all(name in self._narrow or self._fits(name) for name in node.inputs)
        return list(range(len(node.inputs))) if fit else None

    def _product(self, node: Node) -> list[int] | None:
        constants, residual = self._graph.constants, node.input(RESIDUAL_INPUT)
        weights, bias = constants.get(node.input(1)), node.input(2)
        if weights is None or weights.dtype != np.float32 or (bias and bias not in constants):
            return None
        planned = weights.ndim in (3, 4) if node.op == "Conv" else weights.ndim == 2
        begins = node.op == "Conv" and node.inputs[0] not in constants
        if not planned or not (begins or node.inputs[0] in self._narrow):
            return None
        if residual and residual not in self._narrow:
            return None
        return [0, RESIDUAL_INPUT] if residual else [0]

    def _fits(self, name: str) -> bool:
        array = self._graph.constants.get(name)
        return array is not None and array.dtype == np.float32 and not (np.abs(array) > _LARGEST).any()

    def _as_half(self, name: str) -> str:
        if name in self._narrow:
            return self._narrow[name]
        half = f"{name}:half"
        if name in self._graph.constants:
            self._graph.constants[half] = self._graph.constants[name].astype(np.float16)
        else:
            self._narrow[name] = half
            self._wide.add(name)
            self._cast(name, half, TensorProto.FLOAT16)
        return half

    def _widen(self, name: str) -> None:
        if name in self._narrow and name not in self._wide:
            self._wide.add(name)
            self._cast(self._narrow[name], name, TensorProto.FLOAT)

    def _cast(self, source: str, target: str, to: int) -> None:
        self._nodes.append(Node("Cast", [source], [target], {"to": to}, target, "", self._graph.opset))
