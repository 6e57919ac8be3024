"""MatMul and Gemm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from gpu_inference.graph.ir import Array, Node
from gpu_inference.graph.passes.epilogues import RESIDUAL_INPUT
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.codegen import merge_dimensions
from gpu_inference.opencl.expression import C_TYPES, STORAGE_TYPES, Apply, Expr, Scalar
from gpu_inference.opencl.gemm import GemmShape, plan_gemm
from gpu_inference.opencl.launch import Kernel, Launch
from gpu_inference.opencl.lowering.epilogues import FLOAT, epilogue_of, express, is_plain, residual_fits
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
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


def _batches(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[tuple[int, ...], list[int], list[list[int]]]:
    """Leading shape of the result, the merged loop over it, and the strides of both operands in it."""
    lead = tuple(np.broadcast_shapes(a[:-2], b[:-2]))
    steps = []
    for shape in (a, b):
        own = (1,) * (len(lead) - len(shape) + 2) + shape[:-2]
        strides = (0,) * (len(lead) - len(shape) + 2) + layout_strides(shape, "plain")[:-2]
        steps.append([0 if d == 1 else s for d, s in zip(own, strides, strict=True)])
    dims, merged = merge_dimensions(lead, steps)
    return lead, dims, merged


@dataclass(frozen=True, slots=True)
class Product:
    """c[batch, m, n] = alpha * a b, with the strides of its operands.

    Attributes:
        sizes: m, n, k.
        lead: shape of the batch dimensions of the result.
        dims: the same, merged.
        steps: strides of a and b along the merged ones.
        trans_a: a is stored [k, m].
        trans_b: b is stored [n, k].
        alpha: factor.
    """

    sizes: tuple[int, int, int]
    lead: tuple[int, ...] = ()
    dims: tuple[int, ...] = ()
    steps: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    trans_a: bool = False
    trans_b: bool = False
    alpha: float = 1.0


@lowers("MatMul")
def lower_matmul(node: Node, builder: Builder) -> None:
    """NumPy's matmul: vectors, matrices, broadcast batches of matrices; a fused bias is input 2."""
    a, b = builder.shape(0), builder.shape(1)
    wide_a = (1, *a) if len(a) == 1 else a
    wide_b = (*b, 1) if len(b) == 1 else b
    m, k, n = wide_a[-2], wide_a[-1], wide_b[-1]
    lead, dims, steps = _batches(wide_a, wide_b)
    result = (*lead, *([] if len(a) == 1 else [m]), *([] if len(b) == 1 else [n]))
    if dims == [1]:
        dims, steps = [], [[], []]
    elif not any(steps[1]) and len(dims) == 1 and steps[0] == [m * k]:
        m, dims, steps = m * dims[0], [], [[], []]  # the same b for all: one tall product
    product = Product((m, n, k), lead, tuple(dims), (tuple(steps[0]), tuple(steps[1])))
    fits = residual_fits(node, builder, result)
    if fits and builder.has(2):  # a bias that broadcasts the result would be no bias
        fits = len(b) > 1 and builder.shape(2) in ((n,), (1,))
    bias_strides = (0, 1) if builder.has(2) and builder.shape(2) == (n,) else (0, 0)
    if not _planned(node, builder, product, result, bias_strides, fits):
        _simple(node, builder, product, result, 1.0)


@lowers("Gemm")
def lower_gemm(node: Node, builder: Builder) -> None:
    """Compute alpha * a b + beta * c, either factor transposed, c broadcast."""
    trans_a, trans_b = bool(builder.attr("transA", 0)), bool(builder.attr("transB", 0))
    a, b = builder.shape(0), builder.shape(1)
    (m, k) = a[::-1] if trans_a else a
    n = b[0] if trans_b else b[1]
    beta = float(builder.attr("beta", 1.0))
    bias_strides = (0, 1)
    if builder.has(2):
        c = (1,) * (2 - len(builder.shape(2))) + builder.shape(2)
        bias_strides = (0 if c[0] == 1 else c[1], 0 if c[1] == 1 else 1)
    alpha = float(builder.attr("alpha", 1.0))
    product = Product((m, n, k), trans_a=trans_a, trans_b=trans_b, alpha=alpha)
    fits = beta == 1.0 or not builder.has(2) or builder.maybe_known(2) is not None
    if not _planned(node, builder, product, (m, n), bias_strides, fits, beta):
        _simple(node, builder, product, (m, n), beta)


def _planned(
    node: Node,
    builder: Builder,
    product: Product,
    result: tuple[int, ...],
    bias_strides: tuple[int, int],
    fits: bool,
    beta: float = 1.0,
) -> bool:
    """Runs the planned kernels where they can do the product."""
    (m, n, k), dtype = product.sizes, builder.dtype(0)
    empty = 0 in (m, n, k, *product.lead)
    if empty or not fits or dtype.name not in ("float16", "float32", "float64") or len(product.dims) > 3:
        return False
    halves = dtype.name == "float16"
    if halves and builder.has(2) and builder.maybe_known(2) is None:
        return False  # kernels read a bias of floats
    constant = builder.maybe_known(1) is not None and len(builder.shape(1)) <= 2 and not any(product.steps[1])
    shape = GemmShape(
        m=m,
        n=n,
        k=k,
        batch=product.dims,
        a_strides=product.steps[0],
        b_strides=product.steps[1],
        trans_a=product.trans_a,
        trans_b=product.trans_b,
        constant_b=constant,
        alpha=product.alpha,
        bias_strides=bias_strides,
        weights=builder.weights if constant else "fp32",
        halves=halves,
    )
    epilogue = epilogue_of(node, builder.has(2))
    plan = plan_gemm(shape, epilogue, builder.device, builder.choices.gemm(shape, epilogue))
    x = builder.buf(0)
    if constant:
        name = f"gemm-{plan.packing}{int(product.trans_b)}-{shape.weights}"
        w = builder.packed(1, name, lambda array: plan.pack(_float_matrix(array)))
    else:
        w = builder.buf(1)
    bias = None
    if builder.has(2):
        if beta != 1.0 or builder.dtype(2).name == "float16":
            bias = builder.packed(2, f"times{beta}", lambda c: np.asarray(c * beta, np.float32))
        else:
            bias = builder.buf(2)
    residual = builder.buf(RESIDUAL_INPUT) if epilogue.residual != "none" else None
    y = builder.output(0, result, dtype)
    workspace = builder.temporary(plan.workspace_bytes) if plan.workspace_bytes else None
    for launch in plan.launches(x, w, bias, residual, y, workspace):
        builder.launch(launch)
    return True


def _float_matrix(w: Array) -> Array:
    array = np.asarray(w, np.float32)
    return array.reshape(-1, 1) if array.ndim == 1 else array


def _simple(node: Node, builder: Builder, product: Product, result: tuple[int, ...], beta: float) -> None:
    """Any element type, up to four batch dimensions, one work-item an element; then what comes after it."""
    m, n, k = product.sizes
    dims, dtype = product.dims, builder.dtype(0)
    if len(dims) > 4:
        raise Unsupported(f"{node.op} with {len(dims)} batch dimensions that can't be merged")
    fill_up = 4 - len(dims)
    batch = [1] * fill_up + list(dims)
    walk = [[0] * fill_up + list(s) for s in product.steps]
    ctype = C_TYPES[dtype.name]
    a, b = builder.buf(0), builder.buf(1)
    alone = is_plain(node) and not builder.has(2) and product.alpha == 1.0
    raw: Expr | None = None
    if alone:
        y = builder.output(0, result, dtype)
    else:
        raw, y = builder.scratch(result, dtype)
    total = math.prod(batch) * m * n
    a_steps = (1, m) if product.trans_a else (k, 1)
    b_steps = (1, k) if product.trans_b else (n, 1)
    numbers = (total, m, n, k, *a_steps, *b_steps, *batch[1:], *walk[0], *walk[1])
    half = ("HALF", int(dtype.name == "float16"))
    defines = (("C", ctype), half, ("T", STORAGE_TYPES.get(dtype.name, ctype)))
    builder.launch(
        Launch(
            kernel=Kernel(None, "product", defines, _PRODUCT),
            global_size=(-(-total // 64) * 64,),
            local_size=(64,),
            args=(a, b, y, *map(np.int32, numbers)),
            flops=2.0 * total * k,
        )
    )
    if raw is None:
        return
    if product.alpha != 1.0:
        raw = Apply("{0} * {1}", (raw, Scalar(product.alpha, FLOAT)), dtype)
    if builder.has(2):
        wide = tuple(np.broadcast_shapes(result, builder.shape(2)))
        c = builder.expr(2, wide)
        raw = Apply("{0} + {1} * {2}", (raw, c, Scalar(beta, FLOAT)), dtype)
        result = wide
    express(node, builder, raw, result, dtype)
