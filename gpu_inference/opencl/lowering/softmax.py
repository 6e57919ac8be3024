"""Softmax, LogSoftmax, Hardmax and LpNormalization: one kernel that reads a row twice."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.launch import Buf, Kernel, Launch
from gpu_inference.opencl.lowering.reductions import element_types, group_shape
from gpu_inference.opencl.lowering.registry import Unsupported, lowers

_KINDS: Final = {"Softmax": "SOFTMAX", "LogSoftmax": "LOG_SOFTMAX", "Hardmax": "HARDMAX"}
_MAX_HARDMAX: Final = 1 << 24  # the kernel keeps an index in a float


def softmax_launch(
    kind: str, x: Buf, y: Buf, outer: int, size: int, inner: int, dtype: np.dtype[Any]
) -> Launch:
    """The launch that treats every row of [outer, size, inner].

    Args:
        kind: KIND of kernels/softmax.cl.
        x: source.
        y: target; may be x.
        outer: rows before the axis.
        size: of the axis.
        inner: elements from one to the next along it.
        dtype: of both; a float.
    """
    rows, storage = outer * inner, element_types(dtype)[0]
    lanes, parts = group_shape(rows, size, inner == 1)
    defines: dict[str, int | str] = {
        "ACROSS": int(inner > 1),
        "HALF": int(storage == "half"),
        "KIND": kind,
        "OX": lanes,
        "RY": parts,
        "T": storage,
    }
    return Launch(
        kernel=Kernel("softmax.cl", "softmax", tuple(sorted(defines.items()))),
        global_size=(-(-rows // lanes) * lanes * parts if size else 0,),
        local_size=(lanes * parts,),
        args=(x, y, np.int32(rows), np.int32(size), np.int32(inner)),
        flops=8.0 * rows * size,
        bytes=3.0 * rows * size * dtype.itemsize,
    )


def _along(builder: Builder, kind: str, outer: int, size: int, inner: int) -> None:
    shape, dtype = builder.shape(0), builder.dtype(0)
    if dtype.kind != "f":
        raise Unsupported(f"{builder.node.op} of {dtype}")
    x = builder.buf(0)
    y = builder.output(0, shape, dtype)
    builder.launch(softmax_launch(kind, x, y, outer, size, inner, dtype))


@lowers(*_KINDS)
def lower_softmax(node: Node, builder: Builder) -> None:
    """Along one axis; before opset 13 over all axes from `axis` on."""
    shape = builder.shape(0)
    old = node.opset < 13
    axis = int(builder.attr("axis", 1 if old else -1))
    axis = axis + len(shape) if axis < 0 else axis
    outer, size, inner = math.prod(shape[:axis]), math.prod(shape[axis:]), 1
    if not old and shape:
        size, inner = shape[axis], math.prod(shape[axis + 1 :])
    if node.op == "Hardmax" and size > _MAX_HARDMAX:
        raise Unsupported(f"Hardmax over {size} elements")
    _along(builder, _KINDS[node.op], outer, size, inner)


@lowers("LpNormalization")
def lower_lp_normalization(node: Node, builder: Builder) -> None:
    """Each row divided by its 1-norm or 2-norm."""
    shape = builder.shape(0)
    axis = int(builder.attr("axis", -1)) % len(shape)
    power = int(builder.attr("p", 2))
    if power not in (1, 2):
        raise Unsupported(f"LpNormalization with p={power}")
    _along(builder, f"NORM_{power}", math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
