"""Launches of kernels that make one element a work-item, whatever the element's type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.expression import C_TYPES, STORAGE_TYPES
from gpu_inference.opencl.launch import Argument, Kernel, Launch
from gpu_inference.opencl.lowering.registry import Unsupported
from gpu_inference.opencl.value import device_dtype

GROUP: Final = 64
BIT_TYPES: Final = {1: "uchar", 2: "ushort", 4: "uint", 8: "ulong"}

Define = tuple[str, int | str]


def element_type(dtype: np.dtype[Any], operator: str) -> list[Define]:
    """Defines that element.clh works with: T, C and HALF.

    Raises:
        Unsupported: there is no such type on the device.
    """
    ctype = C_TYPES.get(dtype.name)
    if ctype is None:
        raise Unsupported(f"{operator} of {dtype}")
    return [("C", ctype), ("HALF", int(dtype.name == "float16")), ("T", STORAGE_TYPES.get(dtype.name, ctype))]


def bits_type(dtype: np.dtype[Any]) -> str:
    """An unsigned type of the size of an element on the device, for kernels that only move elements."""
    return BIT_TYPES[device_dtype(dtype).itemsize]


def index_type(dtype: np.dtype[Any]) -> Define:
    """The define I: type of the elements of an index tensor."""
    return ("I", C_TYPES[dtype.name])


def per_element(
    builder: Builder,
    kernel: tuple[str, str],
    count: int,
    args: Sequence[Argument | int],
    defines: Sequence[Define] = (),
    moved: float = 0.0,
) -> None:
    """Queues `count` work-items in groups of 64.

    Args:
        builder: of the node.
        kernel: file in kernels/ or the source text, and the function's name.
        count: work-items; none are queued for 0.
        args: in the kernel's order; Python integers are passed as int.
        defines: in any order.
        moved: bytes, for the profiler.
    """
    source, name = kernel
    file = source if source.endswith(".cl") else None
    builder.launch(
        Launch(
            kernel=Kernel(file, name, tuple(sorted(defines)), None if file else source),
            global_size=(-(-count // GROUP) * GROUP,),
            local_size=(GROUP,),
            args=tuple(np.int32(a) if isinstance(a, int) else a for a in args),
            bytes=moved,
        )
    )


def around(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """A shape as [outer, size, inner] around one axis."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
