"""MatMul and Gemm."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from gpu_inference.graph.ir import Array, Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.codegen import merge_dimensions
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.expression import C_TYPES, STORAGE_TYPES
from gpu_inference.opencl.gemm import GemmShape, plan_gemm
from gpu_inference.opencl.launch import Kernel, Launch
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
from gpu_inference.opencl.strided import fill
from gpu_inference.opencl.value import layout_strides

_PRODUCT: Final = """
/* y[b, m, n] = sum of a[b, m, k] b[b, k, n] for types that the tiled kernels don't take. One work-item an
 * element; batches by strides. */
#if HALF
#define LOAD(p, i) vload_half(i, p)
#define STORE(v, p, i) vstore_half(v, i, p)
#else
#define LOAD(p, i) (p)[i]
#define STORE(v, p, i) (p)[i] = (v)
#endif
__kernel void product(__global const T* restrict a, __global const T* restrict b, __global T* restrict y,
                      const int total, const int m, const int n, const int k,
                      const int a_row, const int a_col, const int b_row, const int b_col,
                      const int d1, const int d2, const int d3,
                      const int a0, const int a1, const int a2, const int a3,
                      const int b0, const int b1, const int b2, const int b3) {
    const int i = get_global_id(0);
    if (i >= total) return;
    const int column = i % n, row = (i / n) % m;
    int r = i / n / m;
    const int k3 = r % d3; r /= d3;
    const int k2 = r % d2; r /= d2;
    const int k1 = r % d1; r /= d1;
    const int ai = r * a0 + k1 * a1 + k2 * a2 + k3 * a3 + row * a_row;
    const int bi = r * b0 + k1 * b1 + k2 * b2 + k3 * b3 + column * b_col;
    C sum = 0;
    for (int j = 0; j < k; ++j) sum += LOAD(a, ai + j * a_col) * LOAD(b, bi + j * b_row);
    STORE(sum, y, i);
}
"""


def _batches(
    builder: Builder, a: tuple[int, ...], b: tuple[int, ...]
) -> tuple[tuple[int, ...], list[int], list[list[int]]]:
    """Leading shape of the result, the merged loop over it, and the strides of both operands in it."""
    lead = tuple(np.broadcast_shapes(a[:-2], b[:-2]))
    steps = []
    for shape in (a, b):
        own = (1,) * (len(lead) - len(shape) + 2) + shape[:-2]
        strides = (0,) * (len(lead) - len(shape) + 2) + layout_strides(shape, "plain")[:-2]
        steps.append([0 if d == 1 else s for d, s in zip(own, strides, strict=True)])
    dims, merged = merge_dimensions(lead, steps)
    return lead, dims, merged


@lowers("MatMul")
def lower_matmul(node: Node, builder: Builder) -> None:
    """NumPy's matmul: vectors, matrices, broadcast batches of matrices."""
    a, b = builder.shape(0), builder.shape(1)
    wide_a = (1, *a) if len(a) == 1 else a
    wide_b = (*b, 1) if len(b) == 1 else b
    m, k, n = wide_a[-2], wide_a[-1], wide_b[-1]
    lead, dims, steps = _batches(builder, wide_a, wide_b)
    result = [*lead, *([] if len(a) == 1 else [m]), *([] if len(b) == 1 else [n])]
    dtype = builder.dtype(0)
    if 0 in (m, n, k, *lead):
        y = builder.output(0, result, dtype)
        builder.launch(fill(y, math.prod(result), dtype.type(0)))
        return
    if dtype.name not in ("float32", "float64") or len(dims) > 3:
        simple_product(builder, result, (m, n, k), (k, 1, n, 1), dims, steps)
        return
    constant = builder.maybe_known(1) is not None and len(b) <= 2
    if not any(steps[1]) and dims == [math.prod(lead)] and steps[0][0] == m * k:
        m, dims, steps = m * dims[0], [], [[], []]  # the same b for all: one tall product
    elif dims == [1]:
        dims, steps = [], [[], []]
    shape = GemmShape(
        m=m,
        n=n,
        k=k,
        batch=tuple(dims),
        a_strides=tuple(steps[0]),
        b_strides=() if constant and not dims else tuple(steps[1]),
        constant_b=constant and not any(steps[1]),
    )
    plan = plan_gemm(shape, Epilogue(), builder.device)
    x = builder.buf(0)
    if shape.constant_b:
        w = builder.packed(1, f"gemm-{plan.packing}", lambda w: plan.pack(_float_matrix(w)))
    else:
        w = builder.buf(1)
    y = builder.output(0, result, dtype)
    workspace = builder.temporary(plan.workspace_bytes) if plan.workspace_bytes else None
    for launch in plan.launches(x, w, None, None, y, workspace):
        builder.launch(launch)


def _float_matrix(w: Array) -> Array:
    array = np.asarray(w, np.float32)
    return array.reshape(-1, 1) if array.ndim == 1 else array


def simple_product(
    builder: Builder,
    result: list[int],
    sizes: tuple[int, int, int],
    strides: tuple[int, int, int, int],
    dims: list[int],
    steps: list[list[int]],
) -> None:
    """Any element type and up to four batch dimensions, one work-item an element.

    Args:
        builder: whose inputs 0 and 1 are multiplied into output 0.
        result: its shape.
        sizes: m, n, k.
        strides: a's row and column, b's row and column.
        dims: merged batch dimensions.
        steps: of a and b in them.
    """
    m, n, k = sizes
    if len(dims) > 4:
        raise Unsupported(f"MatMul with {len(dims)} batch dimensions that can't be merged")
    fill_up = 4 - len(dims)
    batch = [1] * fill_up + dims
    walk = [[0] * fill_up + s for s in steps]
    dtype = builder.dtype(0)
    ctype = C_TYPES[dtype.name]
    a, b = builder.buf(0), builder.buf(1)
    y = builder.output(0, result, dtype)
    total = math.prod(batch) * m * n
    a_row, a_col, b_row, b_col = strides
    numbers = (total, m, n, k, a_row, a_col, b_row, b_col, *batch[1:], *walk[0], *walk[1])
    defines = (
        ("C", ctype),
        ("HALF", int(dtype.name == "float16")),
        ("T", STORAGE_TYPES.get(dtype.name, ctype)),
    )
    builder.launch(
        Launch(
            kernel=Kernel(None, "product", defines, _PRODUCT),
            global_size=(-(-total // 64) * 64,),
            local_size=(64,),
            args=(a, b, y, *map(np.int32, numbers)),
            flops=2.0 * total * k,
        )
    )


@lowers("Gemm")
def lower_gemm(node: Node, builder: Builder) -> None:
    """Compute alpha * a b + beta * c, either factor transposed, c broadcast."""
    dtype = builder.dtype(0)
    if dtype.name not in ("float32", "float64"):
        raise Unsupported(f"Gemm of {dtype}")
    trans_a, trans_b = bool(builder.attr("transA", 0)), bool(builder.attr("transB", 0))
    a, b = builder.shape(0), builder.shape(1)
    (m, k) = a[::-1] if trans_a else a
    n = b[0] if trans_b else b[1]
    beta = float(builder.attr("beta", 1.0))
    constant = builder.maybe_known(1) is not None
    bias_strides = (0, 1)
    has_bias = builder.has(2)
    if has_bias:
        c = (1,) * (2 - len(builder.shape(2))) + builder.shape(2)
        bias_strides = (0 if c[0] == 1 else c[1], 0 if c[1] == 1 else 1)
        if beta != 1.0:
            builder.known(2)
    if 0 in (m, n, k):
        raise Unsupported("Gemm of empty matrices")
    shape = GemmShape(
        m=m,
        n=n,
        k=k,
        trans_a=trans_a,
        trans_b=trans_b,
        constant_b=constant,
        alpha=float(builder.attr("alpha", 1.0)),
        bias_strides=bias_strides,
    )
    epilogue = builder.attr("epilogue", Epilogue())
    epilogue = Epilogue(has_bias, "none", epilogue.activation, epilogue.p0, epilogue.p1)
    plan = plan_gemm(shape, epilogue, builder.device)
    x = builder.buf(0)
    w = builder.packed(1, f"gemm-{plan.packing}{int(trans_b)}", plan.pack) if constant else builder.buf(1)
    bias = None
    if has_bias and beta != 1.0:
        bias = builder.packed(2, f"times{beta}", lambda c: np.asarray(c * np.float32(beta), np.float32))
    elif has_bias:
        bias = builder.buf(2)
    y = builder.output(0, (m, n), dtype)
    workspace = builder.temporary(plan.workspace_bytes) if plan.workspace_bytes else None
    for launch in plan.launches(x, w, bias, None, y, workspace):
        builder.launch(launch)
