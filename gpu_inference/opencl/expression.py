"""Elementwise expressions: trees of C templates over tensors and scalars, before they become a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from gpu_inference.opencl.value import Value

# C types that values have inside a kernel; half is for storage only, bool is a byte of 0 or 1.
C_TYPES: Final[dict[str, str]] = {
    "float32": "float",
    "float64": "float",
    "float16": "float",
    "int8": "char",
    "int16": "short",
    "int32": "int",
    "int64": "long",
    "uint8": "uchar",
    "uint16": "ushort",
    "uint32": "uint",
    "uint64": "ulong",
    "bool": "uchar",
}
# C types that they have in memory, where these differ.
STORAGE_TYPES: Final[dict[str, str]] = {"float16": "half"}


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """An element of a tensor, broadcast to the expression's shape."""

    value: Value


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number known when planning; passed as an argument, so that kernels are shared between numbers."""

    number: float | int
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Apply:
    """`template` with {0}, {1} ... replaced by the arguments' variables, as a value of `dtype`."""

    template: str
    args: tuple[Expr, ...]
    dtype: np.dtype[Any]


Expr: TypeAlias = Leaf | Scalar | Apply


def leaves(expr: Expr) -> list[Value]:
    """The tensors that an expression reads, each once, in order of appearance."""
    found: dict[Value, None] = {}
    _collect(expr, found)
    return list(found)


def _collect(expr: Expr, found: dict[Value, None]) -> None:
    match expr:
        case Leaf(value):
            found.setdefault(value)
        case Apply(_, args, _):
            for arg in args:
                _collect(arg, found)


def steps(expr: Expr) -> int:
    """Operations in the tree."""
    return 1 + sum(steps(arg) for arg in expr.args) if isinstance(expr, Apply) else 0


def expr_dtype(expr: Expr) -> np.dtype[Any]:
    """Type of the result."""
    return expr.value.dtype if isinstance(expr, Leaf) else expr.dtype
