"""Resize (and Upsample, which the importer turns into it): nearest, linear and cubic along any axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.launch import Buf
from gpu_inference.opencl.lowering.per_element import bits_type, element_type, per_element
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
from gpu_inference.opencl.value import Layout, device_dtype

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Taps:
    """Where the elements along one axis of the result come from.

    Attributes:
        index: [out, taps] elements of the source; -1 where the coordinate lies outside.
        weight: [out, taps].
    """

    index: NDArray[np.int32]
    weight: NDArray[np.float32]

    def is_identity(self, size: int) -> bool:
        """Whether nothing changes along an axis of `size`."""
        same = self.index.shape == (size, 1) and np.array_equal(self.index[:, 0], np.arange(size))
        return bool(same and np.all(self.weight == 1.0))


@dataclass(frozen=True, slots=True)
class AxisResize:
    """One axis.

    Attributes:
        size: of the source.
        out: of the result.
        scale: as the model says it, or out / size.
        start: of the region of interest, in parts of the axis.
        end: of it.
    """

    size: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def coordinates(axis: AxisResize, mode: str) -> Floats:
    """Position in the source of each element of the result, by ONNX's coordinate_transformation_mode.

    Raises:
        Unsupported: there is no such mode.
    """
    x = np.arange(axis.out, dtype=np.float64)
    exact = axis.scale * axis.size
    match mode:
        case "half_pixel":
            return (x + 0.5) / axis.scale - 0.5
        case "pytorch_half_pixel":
            return (x + 0.5) / axis.scale - 0.5 if exact != 1 else np.full(axis.out, -0.5)
        case "half_pixel_symmetric":
            offset = axis.size / 2 * (1 - axis.out / exact)
            return offset + (x + 0.5) / axis.scale - 0.5
        case "asymmetric":
            return x / axis.scale
        case "align_corners":
            return x * (axis.size - 1) / (exact - 1) if exact != 1 else np.zeros(axis.out)
        case "tf_crop_and_resize":
            length = (axis.end - axis.start) * (axis.size - 1)
            walk = x * length / (exact - 1) if exact != 1 else np.full(axis.out, length / 2)
            return walk + axis.start * (axis.size - 1)
    raise Unsupported(f"Resize with coordinate_transformation_mode {mode!r}")


_ROUNDING: Final[dict[str, Callable[[Floats], Floats]]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _filter(distance: Floats, mode: str, a: float) -> Floats:
    """The interpolation's kernel: a triangle, or Keys' cubic with parameter `a`."""
    d = np.abs(distance)
    if mode == "linear":
        return np.maximum(1.0 - d, 0.0)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def taps_of(node: Node, axis: AxisResize) -> Taps:
    """The table of one axis, as the node's attributes want it."""
    attributes = node.attributes
    mode = str(attributes.get("mode", "nearest"))
    transformation = str(attributes.get("coordinate_transformation_mode", "half_pixel"))
    x = coordinates(axis, transformation)
    if mode == "nearest":
        index = _ROUNDING[str(attributes.get("nearest_mode", "round_prefer_floor"))](x)[:, None]
        weight = np.ones_like(index)
    elif mode in ("linear", "cubic"):
        stretch = max(1.0, 1.0 / axis.scale) if attributes.get("antialias", 0) else 1.0
        reach = math.ceil((1 if mode == "linear" else 2) * stretch)
        index = np.floor(x)[:, None] + np.arange(1 - reach, reach + 1)
        a = float(attributes.get("cubic_coeff_a", -0.75))
        weight = _filter((index - x[:, None]) / stretch, mode, a)
        if attributes.get("exclude_outside", 0):
            weight = np.where((index < 0) | (index >= axis.size), 0.0, weight)
        weight /= weight.sum(axis=1, keepdims=True)
        used = np.any(weight != 0.0, axis=0)
        index, weight = index[:, used], weight[:, used]
    else:
        raise Unsupported(f"Resize with mode {mode!r}")
    clamped: NDArray[np.int32] = np.clip(index, 0, axis.size - 1).astype(np.int32)
    if transformation == "tf_crop_and_resize":
        clamped[(x < 0) | (x > axis.size - 1)] = -1
    return Taps(clamped, weight.astype(np.float32))


def resized_axes(node: Node, builder: Builder) -> list[AxisResize]:
    """What happens along each axis of input 0, from the inputs scales or sizes, roi, and the axes."""
    shape = builder.shape(0)
    rank = len(shape)
    axes = [int(a) % rank for a in builder.attr("axes", range(rank))]
    given_sizes = builder.has(3) and math.prod(builder.shape(3)) > 0
    numbers = builder.known(3 if given_sizes else 2).reshape(-1)
    result = [AxisResize(d, d, 1.0) for d in shape]
    region = [0.0] * len(axes) + [1.0] * len(axes)
    if builder.attr("coordinate_transformation_mode") == "tf_crop_and_resize" and builder.has(1):
        region = [float(r) for r in builder.known(1).reshape(-1)]
    scales = [float(s) / shape[a] if given_sizes else float(s) for a, s in zip(axes, numbers, strict=True)]
    policy = str(builder.attr("keep_aspect_ratio_policy", "stretch"))
    if given_sizes and policy != "stretch":
        scales = [min(scales) if policy == "not_larger" else max(scales)] * len(axes)
    for position, (axis, scale) in enumerate(zip(axes, scales, strict=True)):
        size = shape[axis]
        if not given_sizes:
            out = int(size * scale)
        elif policy == "stretch":
            out = int(numbers[position])
        else:
            out = int(size * scale + 0.5)
        result[axis] = AxisResize(size, out, scale, region[position], region[position + len(axes)])
    return result


@lowers("Resize")
def lower_resize(node: Node, builder: Builder) -> None:
    """One launch for one or two neighbouring axes, the tables of indices and weights made on the host."""
    shape, dtype = builder.shape(0), builder.dtype(0)
    axes = resized_axes(node, builder)
    nearest = builder.attr("mode", "nearest") == "nearest"
    if not nearest and dtype.kind != "f":
        raise Unsupported(f"Resize of {dtype} with mode {builder.attr('mode')!r}")
    result = [axis.out for axis in axes]
    if 0 in result:
        builder.output(0, result, dtype)
        return
    tables = [taps_of(node, axis) for axis in axes]
    moving = [number for number, table in enumerate(tables) if not table.is_identity(axes[number].size)]
    if not moving:
        builder.alias(0, 0, shape)
        return
    nhwc = builder.is_nhwc(0) and len(shape) == 4 and moving[0] >= 2
    layout: Layout = "nhwc" if nhwc else "plain"
    order = [0, 2, 3, 1] if nhwc else list(range(len(shape)))
    dims = [-(-shape[1] // 4) * 4 if nhwc and axis == 1 else shape[axis] for axis in order]
    walk = [order.index(axis) for axis in moving]
    x = builder.buf(0, layout)
    y = builder.output(0, result, dtype, layout)
    while walk:
        pair = walk[:2] if len(walk) > 1 and walk[1] == walk[0] + 1 else walk[:1]
        walk = walk[len(pair) :]
        pass_tables = [tables[order[position]] for position in pair]
        after = list(dims)
        for position, table in zip(pair, pass_tables, strict=True):
            after[position] = len(table.index)
        target = y if not walk else builder.temporary(math.prod(after) * device_dtype(dtype).itemsize)
        _launch(builder, (x, target), (dims, after), pair, pass_tables)
        x, dims = target, after


def _launch(
    builder: Builder,
    buffers: tuple[Buf, Buf],
    shapes: tuple[list[int], list[int]],
    axes: list[int],
    tables: list[Taps],
) -> None:
    """One pass over one axis or two neighbours."""
    dims, after = shapes
    dtype = device_dtype(builder.dtype(0))
    if len(axes) == 1:
        one = Taps(np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32))
        tables, h, oh = [one, *tables], 1, 1
    else:
        h, oh = dims[axes[0]], after[axes[0]]
    w, ow, inner = dims[axes[-1]], after[axes[-1]], math.prod(dims[axes[-1] + 1 :])
    nearest = builder.attr("mode", "nearest") == "nearest"
    vector = inner % 4 == 0 and not nearest and dtype == np.float32
    if nearest:
        bits = bits_type(dtype)
        defines: list[tuple[str, int | str]] = [("C", bits), ("HALF", 0), ("T", bits)]
    else:
        defines = element_type(dtype, "Resize")
    outside = builder.constant(np.asarray([builder.attr("extrapolation_value", 0.0)]).astype(dtype))
    count = math.prod(after) // (4 if vector else 1)
    maps = [builder.constant(table.index) for table in tables]
    maps += [builder.constant(table.weight) for table in tables]
    numbers = [count, h, w, oh, ow, inner // (4 if vector else 1), *(t.index.shape[1] for t in tables)]
    per_element(
        builder,
        ("resize.cl", "resize"),
        count,
        [*buffers, outside, *maps, *numbers],
        [*defines, ("NEAREST", int(nearest)), ("VECTOR", int(vector))],
        float((math.prod(dims) + math.prod(after)) * dtype.itemsize),
    )
