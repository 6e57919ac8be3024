"""Elements picked and placed by index: gathers, scatters, OneHot, ReverseSequence; and running sums."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.launch import Buf
from gpu_inference.opencl.lowering.per_element import (
    Define,
    around,
    bits_type,
    element_type,
    index_type,
    per_element,
)
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
from gpu_inference.opencl.strided import fill, strided_copy
from gpu_inference.opencl.value import device_dtype, layout_strides

_FILE: Final = "indexed.cl"
_REDUCTIONS: Final = {"add": 1, "mul": 2, "max": 3, "min": 4}


def _moving(builder: Builder, index: int, indices: int) -> list[Define]:
    """Defines of a kernel that moves elements of one input by the indices of another."""
    bits = bits_type(builder.dtype(index))
    return [("C", bits), ("HALF", 0), ("T", bits), index_type(builder.dtype(indices))]


def _combining(node: Node, builder: Builder) -> list[Define]:
    """Defines of a scatter: elements are moved as bits, or combined in their own type."""
    reduction = str(builder.attr("reduction", "none"))
    if reduction == "none":
        return [*_moving(builder, 0, 1), ("REDUCTION", 0)]
    if reduction not in _REDUCTIONS:
        raise Unsupported(f"{node.op} with reduction {reduction!r}")
    defines = [*element_type(builder.dtype(0), node.op), index_type(builder.dtype(1))]
    return [*defines, ("REDUCTION", _REDUCTIONS[reduction])]


def _copied(builder: Builder) -> Buf:
    """Output 0 as a copy of input 0."""
    shape, dtype = builder.shape(0), builder.dtype(0)
    x, strides = builder.strided(0)
    y = builder.output(0, shape, dtype)
    plain = layout_strides(shape, "plain")
    builder.launch(strided_copy(x, y, shape, strides, plain, device_dtype(dtype).itemsize))
    return y


def _positions(builder: Builder, shape: tuple[int, ...], within: tuple[int, ...], axis: int) -> Buf:
    """Where in a tensor of shape `within` each line of `shape` along `axis` begins: int32, [lines]."""
    lines = [1 if a == axis else d for a, d in enumerate(shape)]
    strides = layout_strides(within, "plain")
    start = np.zeros(lines, np.int64)
    for a, (d, s) in enumerate(zip(lines, strides, strict=True)):
        start += (np.arange(d) * s).reshape([-1 if b == a else 1 for b in range(len(lines))])
    return builder.constant(start.astype(np.int32).reshape(-1))


@lowers("GatherElements")
def lower_gather_elements(node: Node, builder: Builder) -> None:
    """y[i, j, k] = x[i, index[i, j, k], k] for axis 1, and so on."""
    shape, indices = builder.shape(0), builder.shape(1)
    axis = int(builder.attr("axis", 0)) % len(shape)
    x, index = builder.buf(0), builder.buf(1)
    starts = _positions(builder, indices, shape, axis)
    y = builder.output(0, indices, builder.dtype(0))
    _, length, inner = around(indices, axis)
    step = math.prod(shape[axis + 1 :])
    count = math.prod(indices)
    numbers = [count, length, inner, shape[axis], step]
    per_element(
        builder, (_FILE, "gather_elements"), count, [x, index, starts, y, *numbers], _moving(builder, 0, 1)
    )


@lowers("GatherND")
def lower_gather_nd(node: Node, builder: Builder) -> None:
    """Slices picked by tuples of indices."""
    shape, indices = builder.shape(0), builder.shape(1)
    batch, width = int(builder.attr("batch_dims", 0)), indices[-1]
    picked = shape[batch : batch + width]
    inner = math.prod(shape[batch + width :])
    x, index = builder.buf(0), builder.buf(1)
    y = builder.output(0, (*indices[:-1], *shape[batch + width :]), builder.dtype(0))
    tuples = math.prod(indices[:-1])
    count = tuples * inner
    each = math.prod(indices[batch:-1])
    sizes = builder.constant(np.asarray([*picked, 0], np.int32))
    numbers = [count, inner, width, each, math.prod(picked)]
    per_element(builder, (_FILE, "gather_nd"), count, [x, index, sizes, y, *numbers], _moving(builder, 0, 1))


@lowers("Scatter", "ScatterElements")
def lower_scatter_elements(node: Node, builder: Builder) -> None:
    """A copy of the data with elements replaced, or combined with updates.

    Equal indices meet only along the axis, so that a work-item takes a whole line of it where updates are
    combined: no atomics, and always the same result.
    """
    shape, indices = builder.shape(0), builder.shape(1)
    axis = int(builder.attr("axis", 0)) % len(shape)
    defines = _combining(node, builder)
    index, updates = builder.buf(1), builder.buf(2)
    starts = _positions(builder, indices, shape, axis)
    y = _copied(builder)
    _, length, inner = around(indices, axis)
    lines = math.prod(indices) // max(length, 1)
    numbers = [lines, length, inner, shape[axis], math.prod(shape[axis + 1 :])]
    per_element(builder, (_FILE, "scatter_elements"), lines, [index, updates, starts, y, *numbers], defines)


@lowers("ScatterND")
def lower_scatter_nd(node: Node, builder: Builder) -> None:
    """A copy of the data with slices replaced, or combined with updates.

    Where they are combined, a work-item takes one element of the slices through all the tuples in order.
    """
    shape, indices = builder.shape(0), builder.shape(1)
    width = indices[-1]
    inner, tuples = math.prod(shape[width:]), math.prod(indices[:-1])
    defines = _combining(node, builder)
    index, updates = builder.buf(1), builder.buf(2)
    sizes = builder.constant(np.asarray([*shape[:width], 0], np.int32))
    y = _copied(builder)
    each = 1 if builder.attr("reduction", "none") == "none" else tuples
    count = inner * (tuples // max(each, 1))
    numbers = [count, inner, width, each]
    per_element(builder, (_FILE, "scatter_nd"), count, [index, updates, sizes, y, *numbers], defines)


@lowers("OneHot")
def lower_one_hot(node: Node, builder: Builder) -> None:
    """The on value where the index is, the off value elsewhere."""
    depth = int(builder.known(1).reshape(-1)[0])
    indices, dtype = builder.shape(0), builder.dtype(2)
    axis = int(builder.attr("axis", -1)) % (len(indices) + 1)
    index, values = builder.buf(0), builder.buf(2)
    y = builder.output(0, (*indices[:axis], depth, *indices[axis:]), dtype)
    inner, count = math.prod(indices[axis:]), math.prod(indices) * depth
    per_element(
        builder, (_FILE, "one_hot"), count, [index, values, y, count, depth, inner], _moving(builder, 2, 0)
    )


@lowers("ReverseSequence")
def lower_reverse_sequence(node: Node, builder: Builder) -> None:
    """The first elements of each sequence in the other direction."""
    shape = builder.shape(0)
    time, batch = int(builder.attr("time_axis", 0)), int(builder.attr("batch_axis", 1))
    x, lengths = builder.buf(0), builder.buf(1)
    y = builder.output(0, shape, builder.dtype(0))
    strides, count = layout_strides(shape, "plain"), math.prod(shape)
    numbers = [count, shape[time], strides[time], shape[batch], strides[batch]]
    per_element(
        builder, (_FILE, "reverse_sequence"), count, [x, lengths, y, *numbers], _moving(builder, 0, 1)
    )


@lowers("CumSum")
def lower_cumsum(node: Node, builder: Builder) -> None:
    """Running sums along one axis, a work-item a line."""
    shape, dtype = builder.shape(0), builder.dtype(0)
    axis = builder.ints(1)[0] % len(shape)
    defines = element_type(dtype, "CumSum")
    x = builder.buf(0)
    y = builder.output(0, shape, dtype)
    outer, size, inner = around(shape, axis)
    flags = [int(builder.attr("exclusive", 0)), int(builder.attr("reverse", 0))]
    numbers = [outer * inner, size, inner, *flags]
    per_element(builder, (_FILE, "cumulative_sum"), outer * inner, [x, y, *numbers], defines)


@lowers("NonZero")
def lower_non_zero(node: Node, builder: Builder) -> None:
    """Indices of the elements that aren't zero: how many depends on the data, so the host finds them."""
    rank = len(builder.shape(0))
    builder.host_call(
        lambda arrays: [np.asarray(np.nonzero(np.asarray(arrays[0])), np.int64).reshape(rank, -1)]
    )


@lowers("CenterCropPad")
def lower_center_crop_pad(node: Node, builder: Builder) -> None:
    """The middle of a tensor, with zeros around where it is too small."""
    shape, dtype, target = builder.shape(0), builder.dtype(0), builder.ints(1)
    axes = [int(a) % len(shape) for a in builder.attr("axes", range(len(shape)))]
    result = list(shape)
    for axis, size in zip(axes, target, strict=True):
        result[axis] = size
    copied = [min(a, b) for a, b in zip(shape, result, strict=True)]
    x, strides = builder.strided(0)
    y = builder.output(0, result, dtype)
    plain = layout_strides(tuple(result), "plain")
    if copied != result:
        builder.launch(fill(y, math.prod(result), np.zeros(1, device_dtype(dtype))[0]))
    take = sum((d - c) // 2 * s for d, c, s in zip(shape, copied, strides, strict=True))
    put = sum((d - c) // 2 * s for d, c, s in zip(result, copied, plain, strict=True))
    size = device_dtype(dtype).itemsize
    builder.launch(strided_copy(x, y, copied, strides, plain, size, take, put))
