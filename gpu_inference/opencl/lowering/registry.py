"""Which function lowers which operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from gpu_inference.errors import ModelError
from gpu_inference.graph.ir import Node

if TYPE_CHECKING:
    from gpu_inference.opencl.builder import Builder

Lowering: TypeAlias = "Callable[[Node, Builder], None]"

LOWERINGS: Final[dict[tuple[str, str], Lowering]] = {}


class Unsupported(ModelError):
    """A lowering can't do this node with these attributes or shapes: it goes to onnxruntime, if allowed."""


def lowers(*ops: str, domain: str = "") -> Callable[[Lowering], Lowering]:
    """Registers the decorated function for operators of a domain ("" is ONNX's own)."""

    def register(function: Lowering) -> Lowering:
        for op in ops:
            if (domain, op) in LOWERINGS:
                raise ValueError(f"{op} of domain {domain!r} is lowered twice: remove one of the functions")
            LOWERINGS[domain, op] = function
        return function

    return register


def lowering_of(node: Node) -> Lowering | None:
    """The function for a node, or None where there is none."""
    return LOWERINGS.get((node.domain, node.op))
