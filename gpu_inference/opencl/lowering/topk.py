"""TopK."""

from __future__ import annotations

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.lowering.per_element import around, element_type, per_element
from gpu_inference.opencl.lowering.registry import lowers


@lowers("TopK")
def lower_top_k(node: Node, builder: Builder) -> None:
    """The k largest or smallest elements along an axis and their indices, always sorted."""
    shape, dtype = builder.shape(0), builder.dtype(0)
    k = builder.ints(1)[0]
    axis = int(builder.attr("axis", -1)) % len(shape)
    floats = dtype.kind == "f"
    defines = [
        *element_type(dtype, "TopK"),
        ("FLOATS", int(floats)),
        ("KEY", "int" if floats else "ulong" if dtype.kind == "u" else "long"),
        ("LARGEST", int(builder.attr("largest", 1))),
    ]
    outer, size, inner = around(shape, axis)
    x = builder.buf(0)
    result = (*shape[:axis], k, *shape[axis + 1 :])
    values, indices = builder.output(0, result, dtype), builder.output(1, result, "int64")
    count = outer * size * inner
    per_element(builder, ("top_k.cl", "top_k"), count, [x, values, indices, count, size, inner, k], defines)
