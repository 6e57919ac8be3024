"""MaxPool, AveragePool and LpPool over one to three spatial dimensions, in the layout that the input has."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.launch import Kernel, Launch
from gpu_inference.opencl.lowering.convolution import Window, window_of
from gpu_inference.opencl.lowering.per_element import GROUP, element_type
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
from gpu_inference.opencl.value import Slice, layout_strides, padded_channels, slice_strides

_KINDS: Final = {"MaxPool": "MAX", "AveragePool": "AVERAGE", "LpPool": "LP"}
_SAME: Final = ("SAME_UPPER", "SAME_LOWER")


def _outputs(node: Node, spatial: tuple[int, ...], window: Window) -> tuple[int, ...]:
    """Spatial sizes of the result."""
    ceil = bool(node.attributes.get("ceil_mode", 0))
    if node.attributes.get("auto_pad", "NOTSET") in _SAME:
        return tuple(-(-size // s) for size, s in zip(spatial, window.strides, strict=True))
    sizes = []
    for axis, size in enumerate(spatial):
        before, stride = window.before[axis], window.strides[axis]
        room = size + before + window.after[axis] - window.extent[axis]
        count = (-(-room // stride) if ceil else room // stride) + 1
        if ceil and (count - 1) * stride >= size + before:
            count -= 1  # a window that begins in the padding behind has nothing to look at
        sizes.append(count)
    return tuple(sizes)


@lowers("MaxPool", "AveragePool", "LpPool")
def lower_pool(node: Node, builder: Builder) -> None:
    """A pooling; MaxPool's indices count within the input, rows or columns first."""
    shape, dtype = builder.shape(0), builder.dtype(0)
    rank = len(shape) - 2
    if not 1 <= rank <= 3:
        raise Unsupported(f"{node.op} with {rank} spatial dimensions")
    types = element_type(dtype, node.op)
    window = window_of(node, shape[2:], tuple(int(k) for k in builder.attr("kernel_shape")))
    spatial = _outputs(node, shape[2:], window)
    result = (*shape[:2], *spatial)
    indices = node.op == "MaxPool" and builder.wants(1)
    if not indices:
        builder.expr(
            0, (-1,)
        )  # no tensor has this shape: a pending expression is computed as its operands lie
    nhwc = not indices and builder.is_nhwc(0)
    if nhwc:
        x, x_at = builder.channels_last(0)
        y, y_at = builder.output_channels_last(0, result, dtype)
        strides, target = slice_strides(shape, x_at), slice_strides(result, y_at)
    else:
        x, x_at, y_at = builder.buf(0), Slice(0), Slice(0)
        y = builder.output(0, result, dtype)
        strides, target = layout_strides(shape, "plain"), layout_strides(result, "plain")
    where = builder.output(1, result, np.int64) if indices else y
    channels = padded_channels(shape) if nhwc else shape[1]
    # a missing dimension comes first, and has size 1
    lift = 3 - rank
    ones, zeros = (1,) * lift, (0,) * lift
    steps = layout_strides(shape[2:], "plain")
    if builder.attr("storage_order", 0):
        steps = tuple(math.prod(shape[2 : 2 + axis]) for axis in range(rank))
    total = shape[0] * channels * math.prod(spatial)
    power = int(builder.attr("p", 2))
    numbers = [total, shape[1], channels, *ones, *shape[2:], *ones, *spatial]
    numbers += [*ones, *window.kernel, *ones, *window.strides, *ones, *window.dilations]
    numbers += [*zeros, *window.before, *zeros, *window.after]
    numbers += [*strides[:2], *zeros, *strides[2:], *target[:2], *zeros, *target[2:], *zeros, *steps]
    numbers += [x_at.offset, y_at.offset]
    defines = [
        *types,
        ("INCLUDE_PAD", int(builder.attr("count_include_pad", 0))),
        ("INDICES", int(indices)),
        ("KIND", _KINDS[node.op]),
        ("NHWC", int(nhwc)),
        ("POWER", power if power in (1, 2) else 0),
    ]
    builder.launch(
        Launch(
            kernel=Kernel("pool.cl", "pool", tuple(sorted(defines))),
            global_size=(-(-total // GROUP) * GROUP,),
            local_size=(GROUP,),
            args=(x, y, where, *map(np.int32, numbers), np.float32(power)),
            flops=float(total * math.prod(window.kernel)),
            bytes=float((math.prod(shape) + total) * dtype.itemsize),
        )
    )
