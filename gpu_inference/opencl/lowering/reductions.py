"""Reduce*, ArgMax, ArgMin and global pooling: one kernel over any axes and strides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.codegen import merge_dimensions
from gpu_inference.opencl.expression import C_TYPES, STORAGE_TYPES
from gpu_inference.opencl.launch import Buf, Kernel, Launch
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
from gpu_inference.opencl.value import layout_strides

_LIMITS: Final = {
    "float": ("-INFINITY", "INFINITY"),
    "char": ("CHAR_MIN", "CHAR_MAX"),
    "short": ("SHRT_MIN", "SHRT_MAX"),
    "int": ("INT_MIN", "INT_MAX"),
    "long": ("LONG_MIN", "LONG_MAX"),
    "uchar": ("0", "UCHAR_MAX"),
    "ushort": ("0", "USHRT_MAX"),
    "uint": ("0", "UINT_MAX"),
    "ulong": ("0", "ULONG_MAX"),
}
MAX_DIMENSIONS: Final = 4


@dataclass(frozen=True, slots=True)
class Reduction:
    """What kernels/reduce.cl computes.

    Attributes:
        kind: its KIND, by name.
        finish: its FINISH, by name.
        real: accumulate in float whatever the elements are.
        last: the last index of equal ones, for arg_max and arg_min.
    """

    kind: str
    finish: str = "none"
    real: bool = False
    last: bool = False


REDUCTIONS: Final[dict[str, Reduction]] = {
    "ReduceSum": Reduction("sum"),
    "ReduceMean": Reduction("sum", "mean"),
    "ReduceL1": Reduction("abs"),
    "ReduceL2": Reduction("square", "sqrt", real=True),
    "ReduceSumSquare": Reduction("square"),
    "ReduceProd": Reduction("product"),
    "ReduceMax": Reduction("maximum"),
    "ReduceMin": Reduction("minimum"),
    "ReduceLogSum": Reduction("sum", "log", real=True),
    "ReduceLogSumExp": Reduction("log_sum_exp", real=True),
}


def element_types(dtype: np.dtype[Any]) -> tuple[str, str]:
    """C types of an element in memory and in registers.

    Raises:
        Unsupported: kernels have no such type.
    """
    if dtype.name not in C_TYPES:
        raise Unsupported(f"elements of type {dtype}")
    ctype = C_TYPES[dtype.name]
    return STORAGE_TYPES.get(dtype.name, ctype), ctype


def input_as_it_lies(builder: Builder, index: int) -> tuple[Buf, tuple[int, ...]]:
    """`builder.strided`, where a pending expression is computed in the layout that its operands have."""
    builder.expr(index, (-1,))  # no tensor has this shape, so that it is computed and not taken in
    return builder.strided(index)


def _power_of_two(number: int) -> int:
    return 1 << (max(number, 1) - 1).bit_length()


def group_shape(outputs: int, count: int, inner: bool) -> tuple[int, int]:
    """Results and partial reductions of a work-group of 64 or 256, for `outputs` reductions of `count`."""
    if inner:
        rows = 256 if count >= 1024 else min(64, _power_of_two(-(-count // 2)))
        return max(64 // rows, 1), rows
    if count < 16 or outputs >= 16384:
        return 64, 1
    lanes = min(64, _power_of_two(outputs))
    return lanes, min(256 // lanes, _power_of_two(-(-count // 2)))


def _pad(numbers: Sequence[int], value: int) -> list[int]:
    return [value] * (MAX_DIMENSIONS - len(numbers)) + list(numbers)


def reduce_launch(
    reduction: Reduction,
    x: Buf,
    shape: Sequence[int],
    strides: Sequence[int],
    axes: Sequence[int],
    y: Buf,
    dtypes: tuple[np.dtype[Any], np.dtype[Any]],
    shift: Buf | None = None,
) -> Launch:
    """The launch that reduces x over `axes` into a dense y.

    Args:
        reduction: what to compute.
        x: source.
        shape: of x.
        strides: of x, elements.
        axes: reduced ones, not negative.
        y: target, the kept dimensions in order.
        dtypes: of x and y.
        shift: with "centred": float32, dense like y.

    Raises:
        Unsupported: more alternating kept and reduced dimensions than the kernel walks through.
    """
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    outputs, count = math.prod(shape[a] for a in kept), math.prod(shape[a] for a in axes)
    kept_shape = [shape[a] for a in kept]
    dense = layout_strides(tuple(kept_shape), "plain")
    k, (p, _) = merge_dimensions(kept_shape, [[strides[a] for a in kept], dense])
    r, (q,) = merge_dimensions([shape[a] for a in axes], [[strides[a] for a in axes]])
    if len(k) > MAX_DIMENSIONS or len(r) > MAX_DIMENSIONS:
        raise Unsupported(f"a reduction of {tuple(shape)} over {tuple(axes)}")
    storage, ctype = element_types(dtypes[0])
    target, _ = element_types(dtypes[1])
    accumulator = "float" if reduction.real else ctype
    inner = count > 1 and q[-1] == 1
    lanes, rows = group_shape(outputs, count, inner)
    low, high = _LIMITS[accumulator]
    numbers = [outputs, count, *_pad(k, 1)[1:], *_pad(p, 0), *_pad(r, 1)[1:], *_pad(q, 0)]
    defines: dict[str, int | str] = {
        "A": accumulator,
        "FINISH": f"FINISH_{reduction.finish.upper()}",
        "FLAT": int(len(r) == 1),
        "HALF": int(storage == "half"),
        "HALF_OUT": int(target == "half"),
        "HIGHEST": high,
        "INNER": int(inner),
        "KIND": reduction.kind.upper(),
        "LAST": int(reduction.last),
        "LOWEST": low,
        "OX": lanes,
        "RY": rows,
        "T": storage,
        "TO": target,
    }
    return Launch(
        kernel=Kernel("reduce.cl", "reduce", tuple(sorted(defines.items()))),
        global_size=(-(-outputs // lanes) * lanes * rows,),
        local_size=(lanes * rows,),
        args=(x, shift or x, y, *map(np.int32, numbers)),
        flops=float(outputs * count),
        bytes=float(outputs * count * dtypes[0].itemsize + outputs * dtypes[1].itemsize),
    )


def _reduce(
    builder: Builder, reduction: Reduction, axes: Sequence[int], keepdims: bool, dtype: np.dtype[Any]
) -> None:
    shape = builder.shape(0)
    result = [1 if a in axes else d for a, d in enumerate(shape) if keepdims or a not in axes]
    element_types(builder.dtype(0))
    x, strides = input_as_it_lies(builder, 0)
    y = builder.output(0, result, dtype)
    builder.launch(reduce_launch(reduction, x, shape, strides, axes, y, (builder.dtype(0), dtype)))


@lowers(*REDUCTIONS)
def lower_reduce(node: Node, builder: Builder) -> None:
    """A reduction over the axes of input 1, or all of them."""
    rank = len(builder.shape(0))
    axes = sorted({axis % rank for axis in builder.ints(1)}) if builder.has(1) and rank else []
    if not axes and not builder.attr("noop_with_empty_axes", 0):
        axes = list(range(rank))
    _reduce(builder, REDUCTIONS[node.op], axes, bool(builder.attr("keepdims", 1)), builder.dtype(0))


@lowers("ArgMax", "ArgMin")
def lower_arg(node: Node, builder: Builder) -> None:
    """Index of the first (or last) greatest or least element along an axis."""
    axis = int(builder.attr("axis", 0)) % len(builder.shape(0))
    last = bool(builder.attr("select_last_index", 0))
    reduction = Reduction("arg_max" if node.op == "ArgMax" else "arg_min", last=last)
    _reduce(builder, reduction, [axis], bool(builder.attr("keepdims", 1)), np.dtype(np.int64))


@lowers("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def lower_global_pool(node: Node, builder: Builder) -> None:
    """A reduction over the spatial dimensions, in the layout that the input has."""
    axes = list(range(2, len(builder.shape(0))))
    if node.op == "GlobalLpPool":
        power = int(builder.attr("p", 2))
        if power not in (1, 2):
            raise Unsupported(f"GlobalLpPool with p={power}")
        reduction = REDUCTIONS[f"ReduceL{power}"]
    else:
        reduction = REDUCTIONS["ReduceMean" if node.op == "GlobalAveragePool" else "ReduceMax"]
    _reduce(builder, reduction, axes, True, builder.dtype(0))
