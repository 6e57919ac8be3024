"""The graph that passes rewrite and engines plan: nodes in topological order, constants by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of a model.

    Attributes:
        name: as in the model.
        dtype: element type.
        shape: None where a dimension is free; () is a scalar. None where even the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None


@dataclass(slots=True)
class Node:
    """One operator.

    Attributes:
        op: its ONNX type, or a name of ours for what passes fuse.
        inputs: names of tensors; "" where an optional one is left out.
        outputs: names of tensors; "" where nobody wants one.
        attributes: decoded: numbers, str, lists of them, arrays, or an onnx proto for subgraphs.
        name: of the node in the model, or of its first output.
        domain: "" for ONNX's own.
        opset: version of that domain in the model.
    """

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""
    opset: int = 0

    @property
    def label(self) -> str:
        """For messages: operator, name and opset."""
        domain = f"{self.domain}." if self.domain else ""
        return f"{domain}{self.op} node {self.name!r} (opset {self.opset})"

    @property
    def captures(self) -> list[str]:
        """Tensors that its subgraphs (of If, Loop, Scan) read from outside of them."""
        found: dict[str, None] = {}
        for value in self.attributes.values():
            if isinstance(value, GraphProto):
                found.update(dict.fromkeys(_captures(value)))
        return list(found)

    @property
    def reads(self) -> list[str]:
        """Inputs that are given, and what subgraphs capture."""
        return [name for name in self.inputs if name] + self.captures

    def input(self, index: int) -> str:
        """Name of an input, "" where it isn't given."""
        return self.inputs[index] if index < len(self.inputs) else ""


def _captures(graph: GraphProto) -> Iterator[str]:
    known = {value.name for value in (*graph.input, *graph.initializer)}
    for node in graph.node:
        yield from (name for name in node.input if name and name not in known)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from (name for name in _captures(attribute.g) if name not in known)
        known.update(node.output)
    yield from (value.name for value in graph.output if value.name not in known)


@dataclass(slots=True)
class Graph:
    """A model.

    Attributes:
        nodes: in topological order.
        inputs: without those that are constants.
        outputs: in the model's order.
        constants: initialisers and what folding made of them.
        opset: of ONNX's own domain.
        half: weights of convolutions and products were all float16.
        stored: how the model's metadata ("polarstream.weights") says that weights are best stored; "" where
            it says nothing.
    """

    nodes: list[Node]
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    constants: dict[str, Array]
    opset: int
    half: bool = False
    stored: str = ""

    def consumers(self) -> dict[str, list[Node]]:
        """Nodes that read a tensor, one entry for each reading input and for each that captures it."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.reads:
                found.setdefault(name, []).append(node)
        return found

    def producers(self) -> Mapping[str, Node]:
        """The node that makes a tensor."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def output_names(self) -> set[str]:
        """Names that must stay."""
        return {output.name for output in self.outputs}

    def fresh_names(self, stem: str) -> Iterator[str]:
        """Names that no tensor of the graph has yet."""
        taken = set(self.constants) | {i.name for i in self.inputs} | set(self.producers())
        number = 0
        while True:
            name = f"{stem}.{number}"
            number += 1
            if name not in taken:
                yield name
