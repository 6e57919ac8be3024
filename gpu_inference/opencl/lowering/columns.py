"""Columns of filter taps: Col2Im, and DeformConv as columns and a product."""

from __future__ import annotations

import math

import numpy as np

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.expression import Apply
from gpu_inference.opencl.gemm import GemmShape, plan_gemm
from gpu_inference.opencl.lowering.convolution import window_of
from gpu_inference.opencl.lowering.per_element import element_type, per_element
from gpu_inference.opencl.lowering.registry import Unsupported, lowers


@lowers("Col2Im")
def lower_col2im(node: Node, builder: Builder) -> None:
    """Blocks added up where they lie in the image."""
    image, block = builder.ints(1), builder.ints(2)
    (batch, planes, _), dtype = builder.shape(0), builder.dtype(0)
    rank = len(image)
    if rank > 3:
        raise Unsupported(f"Col2Im of {rank} dimensions")
    window = window_of(node, tuple(image), tuple(block))
    blocks = [
        (d + b + a - e) // s + 1
        for d, b, a, e, s in zip(
            image, window.before, window.after, window.extent, window.strides, strict=True
        )
    ]
    defines = element_type(dtype, "Col2Im")
    x = builder.buf(0)
    channels = planes // math.prod(block)
    y = builder.output(0, (batch, channels, *image), dtype)
    ones, zeros = [1] * (3 - rank), [0] * (3 - rank)
    numbers = [batch * channels * math.prod(image)]
    for sizes in (image, block, window.strides, window.dilations):
        numbers += [*ones, *sizes]
    numbers += [*zeros, *window.before, *ones, *blocks]
    per_element(builder, ("columns.cl", "col2im"), numbers[0], [x, y, *numbers], [*defines, ("DEFORM", 0)])


@lowers("DeformConv")
def lower_deform_conv(node: Node, builder: Builder) -> None:
    """Samples at moved taps as columns, then one product a group of filters."""
    x, w, offset, dtype = builder.shape(0), builder.shape(1), builder.shape(2), builder.dtype(0)
    if len(x) != 4 or dtype != np.float32:
        raise Unsupported(f"DeformConv of {dtype} with {len(x) - 2} spatial dimensions")
    group, offset_group = int(builder.attr("group", 1)), int(builder.attr("offset_group", 1))
    window = window_of(node, x[2:], w[2:])
    (kh, kw), (oh, ow), filters = w[2:], offset[2:], w[0]
    buffers = [builder.buf(0), builder.buf(2), builder.buf(4 if builder.has(4) else 2)]
    count = x[0] * x[1] * kh * kw * oh * ow
    columns = builder.temporary(4 * count)
    numbers = [
        count,
        *x[1:],
        offset_group,
        kh,
        kw,
        oh,
        ow,
        *window.strides,
        *window.dilations,
        *window.before,
    ]
    defines = [*element_type(dtype, "DeformConv"), ("DEFORM", 1), ("MASK", int(builder.has(4)))]
    per_element(builder, ("columns.cl", "deform_columns"), count, [*buffers, columns, *numbers], defines)
    taps, size = w[1] * kh * kw, oh * ow
    product = GemmShape(
        m=filters // group,
        n=size,
        k=taps,
        batch=(x[0], group),
        a_strides=(0, filters // group * taps),
        b_strides=(group * taps * size, taps * size),
    )
    plan = plan_gemm(product, Epilogue(), builder.device, builder.choices.gemm(product, Epilogue()))
    weights = builder.buf(1)
    result = (x[0], filters, oh, ow)
    leaf, y = builder.scratch(result, dtype)
    workspace = builder.temporary(plan.workspace_bytes) if plan.workspace_bytes else None
    for launch in plan.launches(weights, columns, None, None, y, workspace):
        builder.launch(launch)
    if builder.has(3):
        bias = builder.view(3, (1, filters, 1, 1))
        builder.lazy(0, Apply("{0} + {1}", (leaf, bias), dtype), result)
    else:
        builder.lazy(0, Apply("{0}", (leaf,), dtype), result)
