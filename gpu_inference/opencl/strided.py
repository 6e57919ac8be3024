"""Copies between tensors with any strides: what Transpose, Slice, Concat, Pad, layouts and others come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gpu_inference.opencl.codegen import merge_dimensions
from gpu_inference.opencl.launch import Buf, Kernel, Launch

GROUP: Final = 64
_TYPES: Final = {1: "uchar", 2: "ushort", 4: "uint", 8: "ulong"}


def _source(rank: int) -> str:
    """One work-item copies one element; T is an unsigned type of the element's size."""
    dims = "".join(f"const int d{axis}, " for axis in range(1, rank))
    steps = ", ".join(f"const int p{axis}, const int q{axis}" for axis in range(rank))
    decode = "".join(
        f"    const int k{axis} = r % d{axis}; r /= d{axis};\n" for axis in range(rank - 1, 0, -1)
    )
    source = " + ".join(f"k{axis} * p{axis}" for axis in range(rank))
    target = " + ".join(f"k{axis} * q{axis}" for axis in range(rank))
    return (
        f"__kernel void strided_copy(__global const T* restrict x, __global T* restrict y, const int n,\n"
        f"    {dims}{steps}, const int x0, const int y0) {{\n"
        f"    int r = get_global_id(0);\n    if (r >= n) return;\n{decode}    const int k0 = r;\n"
        f"    y[y0 + {target}] = x[x0 + {source}];\n}}\n"
    )


def strided_copy(
    x: Buf,
    y: Buf,
    shape: Sequence[int],
    x_strides: Sequence[int],
    y_strides: Sequence[int],
    itemsize: int,
    x_offset: int = 0,
    y_offset: int = 0,
) -> Launch:
    """y[y_offset + index . y_strides] = x[x_offset + index . x_strides] for every index in `shape`.

    Args:
        x: source.
        y: target; not the same memory.
        shape: of the loop; the last dimensions should be contiguous in y.
        x_strides: elements, may be 0 or negative.
        y_strides: elements.
        itemsize: bytes of an element: 1, 2, 4 or 8.
        x_offset: elements before the first one read.
        y_offset: elements before the first one written.
    """
    dims, (xs, ys) = merge_dimensions(shape, [x_strides, y_strides])
    count, rank = math.prod(dims) if 0 not in shape else 0, len(dims)
    numbers = [count, *dims[1:]]
    for axis in range(rank):
        numbers += [xs[axis], ys[axis]]
    return Launch(
        kernel=Kernel(None, "strided_copy", (("T", _TYPES[itemsize]),), _source(rank)),
        global_size=(-(-count // GROUP) * GROUP,),
        local_size=(GROUP,),
        args=(x, y, *map(np.int32, [*numbers, x_offset, y_offset])),
        bytes=2.0 * count * itemsize,
    )


_TO_NHWC: Final = """
/* [n, c, s] to [n, s, c4], zeros past c. One work-item: one element of the result. */
__kernel void to_nhwc(__global const T* restrict x, __global T* restrict y, const int n, const int c,
                      const int c4, const int s) {
    const int i = get_global_id(0);
    if (i >= n) return;
    const int k = i % c4, r = i / c4;
    y[i] = k < c ? x[((r / s) * c + k) * s + r % s] : (T)0;
}
"""


def to_nhwc(x: Buf, y: Buf, n: int, c: int, spatial: int, itemsize: int) -> Launch:
    """Plain [n, c, spatial] to NHWC with channels padded to a multiple of 4 by zeros."""
    c4 = -(-c // 4) * 4
    count = n * spatial * c4
    return Launch(
        kernel=Kernel(None, "to_nhwc", (("T", _TYPES[itemsize]),), _TO_NHWC),
        global_size=(-(-count // GROUP) * GROUP,),
        local_size=(GROUP,),
        args=(x, y, np.int32(count), np.int32(c), np.int32(c4), np.int32(spatial)),
        bytes=2.0 * count * itemsize,
    )


def fill(y: Buf, count: int, value: np.generic[Any]) -> Launch:
    """`count` elements of `value`, whose dtype decides the size; 8-byte values must fit in 4."""
    array = np.asarray(value)
    number: np.int32 | np.float32
    if array.dtype.kind == "f":
        number, ctype, store = np.float32(array), "float", "float"
        if array.dtype.itemsize == 2:
            ctype, store = "float", "half"
    else:
        number, ctype, store = (
            np.int32(array),
            "int",
            {1: "char", 2: "short", 4: "int", 8: "long"}[array.itemsize],
        )
    write = "vstore_half(value, i, y)" if store == "half" else f"y[i] = ({store})value"
    source = (
        f"__kernel void fill(__global {store}* y, const int n, const {ctype} value) {{\n"
        f"    const int i = get_global_id(0);\n    if (i < n) {{ {write}; }}\n}}\n"
    )
    return Launch(
        kernel=Kernel(None, "fill", (), source),
        global_size=(-(-count // GROUP) * GROUP,),
        local_size=(GROUP,),
        args=(y, np.int32(count), number),
        bytes=float(count * array.itemsize),
    )
