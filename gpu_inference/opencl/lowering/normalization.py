"""Layer, RMS, instance, group, mean-variance and local response normalisation."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.expression import Apply, Leaf, Scalar
from gpu_inference.opencl.launch import Kernel, Launch
from gpu_inference.opencl.lowering.reductions import (
    Reduction,
    element_types,
    group_shape,
    input_as_it_lies,
    reduce_launch,
)
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
from gpu_inference.opencl.value import Shape, Value, layout_elements

FLOAT: Final = np.dtype(np.float32)
MEAN: Final = Reduction("sum", "mean", real=True)
VARIANCE: Final = Reduction("centred", "mean", real=True)
GROUP: Final = 64
_MVN_EPSILON: Final = 1e-9


def _require_float(builder: Builder, inputs: int) -> np.dtype[Any]:
    dtype = builder.dtype(0)
    if dtype.kind != "f" or any(builder.dtype(i) != dtype for i in range(inputs) if builder.has(i)):
        raise Unsupported(f"{builder.node.op} of {[str(builder.dtype(i)) for i in range(inputs)]}")
    return dtype


def _normalize(
    builder: Builder,
    rows: int,
    size: int,
    scale_index: tuple[int, int, int],
    *,
    rms: bool = False,
    statistics: Shape | None = None,
) -> None:
    """Queues kernels/normalize.cl over rows of `size`; `scale_index` is its (period, step, span)."""
    dtype, bias = builder.dtype(0), builder.has(2) and not rms
    storage = element_types(dtype)[0]
    x, scale = builder.buf(0), builder.buf(1)
    offset = builder.buf(2) if bias else scale
    y = builder.output(0, builder.shape(0), dtype)
    means = inverses = y
    if statistics is not None:
        means, inverses = builder.output(1, statistics, FLOAT), builder.output(2, statistics, FLOAT)
    lanes, parts = group_shape(rows, size, True)
    defines: dict[str, int | str] = {
        "BIAS": int(bias),
        "HALF": int(storage == "half"),
        "OX": lanes,
        "RMS": int(rms),
        "RY": parts,
        "STATISTICS": int(statistics is not None),
        "T": storage,
    }
    numbers = map(np.int32, (rows, size, *scale_index))
    epsilon = np.float32(builder.attr("epsilon", 1e-5))
    builder.launch(
        Launch(
            kernel=Kernel("normalize.cl", "norm_rows", tuple(sorted(defines.items()))),
            global_size=(-(-rows // lanes) * lanes * parts if size else 0,),
            local_size=(lanes * parts,),
            args=(x, scale, offset, y, means, inverses, *numbers, epsilon),
            flops=8.0 * rows * size,
            bytes=2.0 * rows * size * dtype.itemsize,
        )
    )


@lowers("LayerNormalization", "RMSNormalization")
def lower_layer_norm(node: Node, builder: Builder) -> None:
    """Over all axes from `axis` on."""
    shape = builder.shape(0)
    _require_float(builder, 3)
    axis = int(builder.attr("axis", -1)) % len(shape)
    rows, size = math.prod(shape[:axis]), math.prod(shape[axis:])
    for index in (1, 2):
        if builder.has(index) and math.prod(builder.shape(index)) != size:
            raise Unsupported(f"{node.op} of {shape} with a scale or bias of {builder.shape(index)}")
    wanted = builder.wants(1) or builder.wants(2)
    statistics = (*shape[:axis], *(1 for _ in shape[axis:])) if wanted else None
    _normalize(builder, rows, size, (1, 0, 1), rms=node.op == "RMSNormalization", statistics=statistics)


@lowers("InstanceNormalization")
def lower_instance_norm(node: Node, builder: Builder) -> None:
    """Over the spatial dimensions of each channel."""
    shape = builder.shape(0)
    _require_float(builder, 3)
    size = math.prod(shape[2:])
    _normalize(builder, shape[0] * shape[1], size, (shape[1], 1, max(size, 1)))


@lowers("GroupNormalization")
def lower_group_norm(node: Node, builder: Builder) -> None:
    """Over groups of channels; scale and bias are of a channel, before opset 21 of a group."""
    shape = builder.shape(0)
    _require_float(builder, 3)
    groups, spatial = int(builder.attr("num_groups")), math.prod(shape[2:])
    channels = shape[1] // groups
    index = (groups, channels, spatial) if node.opset >= 21 else (groups, 1, channels * spatial)
    _normalize(builder, shape[0] * groups, channels * spatial, index)


@lowers("MeanVarianceNormalization")
def lower_mean_variance(node: Node, builder: Builder) -> None:
    """(x - mean) / sqrt(variance) over any axes: two reductions and an elementwise kernel."""
    shape, dtype = builder.shape(0), _require_float(builder, 1)
    axes = sorted(int(a) % len(shape) for a in builder.attr("axes", [0, 2, 3]))
    kept = tuple(1 if a in axes else d for a, d in enumerate(shape))
    x, strides = input_as_it_lies(builder, 0)
    mean, mean_buf = builder.scratch(kept, FLOAT)
    builder.launch(reduce_launch(MEAN, x, shape, strides, axes, mean_buf, (dtype, FLOAT)))
    variance, variance_buf = builder.scratch(kept, FLOAT)
    centred = reduce_launch(VARIANCE, x, shape, strides, axes, variance_buf, (dtype, FLOAT), mean_buf)
    builder.launch(centred)
    args = (builder.expr(0, shape), mean, variance, Scalar(_MVN_EPSILON, FLOAT))
    builder.lazy(0, Apply("({0} - {1}) / (sqrt({2}) + {3})", args, dtype), shape)


@lowers("LRN")
def lower_lrn(node: Node, builder: Builder) -> None:
    """Across neighbouring channels, in the layout that the input has."""
    shape, dtype = builder.shape(0), _require_float(builder, 1)
    size = int(builder.attr("size"))
    storage = element_types(dtype)[0]
    x, strides = input_as_it_lies(builder, 0)
    nhwc = builder.is_nhwc(0)
    y = builder.output(0, shape, dtype, "nhwc" if nhwc else "plain")
    count = layout_elements(shape, "nhwc" if nhwc else "plain")
    stored = -(-shape[1] // 4) * 4 if nhwc else shape[1]
    before = (size - 1) // 2
    numbers = map(np.int32, (count, shape[1], stored, strides[1], before, size - 1 - before))
    alpha, beta = float(builder.attr("alpha", 1e-4)) / size, float(builder.attr("beta", 0.75))
    builder.launch(
        Launch(
            kernel=Kernel("lrn.cl", "lrn", (("HALF", int(storage == "half")), ("T", storage))),
            global_size=(-(-count // GROUP) * GROUP,),
            local_size=(GROUP,),
            args=(x, y, *numbers, *map(np.float32, (alpha, beta, builder.attr("bias", 1.0)))),
            flops=(2.0 * size + 20.0) * count,
            bytes=2.0 * count * dtype.itemsize,
        )
    )


def lower_training_batch_norm(node: Node, builder: Builder) -> None:
    """Batch normalisation by the statistics of this batch, and the running ones that come of them."""
    shape, dtype = builder.shape(0), _require_float(builder, 1)
    axes = [axis for axis in range(len(shape)) if axis != 1]
    channels = (shape[1], *(1 for _ in shape[2:]))
    x, strides = input_as_it_lies(builder, 0)
    mean, mean_buf = builder.scratch(channels, FLOAT)
    builder.launch(reduce_launch(MEAN, x, shape, strides, axes, mean_buf, (dtype, FLOAT)))
    variance, variance_buf = builder.scratch(channels, FLOAT)
    centred = reduce_launch(VARIANCE, x, shape, strides, axes, variance_buf, (dtype, FLOAT), mean_buf)
    builder.launch(centred)
    scale, bias = builder.view(1, channels), builder.view(2, channels)
    epsilon = Scalar(float(builder.attr("epsilon", 1e-5)), FLOAT)
    args = (builder.expr(0, shape), mean, variance, scale, bias, epsilon)
    builder.lazy(0, Apply("({0} - {1}) / sqrt({2} + {5}) * {3} + {4}", args, dtype), shape)
    momentum = Scalar(float(builder.attr("momentum", 0.9)), FLOAT)
    for output, batch in ((1, mean.value), (2, variance.value)):
        if not builder.wants(output):
            continue
        running, flat = builder.dtype(output + 2), (shape[1],)
        row = Value("", flat, FLOAT, 0, None, "", dict(batch.stores))
        for storage in row.stores.values():
            storage.refs += 1
        update = (builder.expr(output + 2, flat), Leaf(row), momentum)
        builder.lazy(output, Apply("{0} * {2} + {1} * (1.0f - {2})", update, running), flat)
