"""MaxUnpool."""

from __future__ import annotations

import math

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.lowering.per_element import element_type, per_element
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
from gpu_inference.opencl.strided import fill


@lowers("MaxUnpool")
def lower_max_unpool(node: Node, builder: Builder) -> None:
    """Scatters elements to where MaxPool found them; the rest is 0."""
    shape, dtype = builder.shape(0), builder.dtype(0)
    rank = len(shape) - 2
    if not 1 <= rank <= 3:
        raise Unsupported(f"MaxUnpool with {rank} spatial dimensions")
    types = element_type(dtype, "MaxUnpool")
    kernel = [int(k) for k in builder.attr("kernel_shape")]
    strides = [int(s) for s in builder.attr("strides") or [1] * rank]
    pads = [int(p) for p in builder.attr("pads") or [0] * (2 * rank)]
    pooled = [
        (shape[2 + axis] - 1) * strides[axis] - pads[axis] - pads[rank + axis] + kernel[axis]
        for axis in range(rank)
    ]
    result = builder.ints(2) if builder.has(2) else [*shape[:2], *pooled]
    if any(have < want for have, want in zip(result[2:], pooled, strict=True)):
        raise Unsupported(f"MaxUnpool to {tuple(result)} of what was {tuple(pooled)}")
    x, where = builder.buf(0), builder.buf(1)
    y = builder.output(0, result, dtype)
    builder.launch(fill(y, math.prod(result), dtype.type(0)))
    total, ones = math.prod(shape), [1] * (3 - rank)
    numbers = [total, *ones, *pooled, *ones, *result[2:]]
    per_element(builder, ("unpool.cl", "unpool"), total, [x, where, y, *numbers], types)
