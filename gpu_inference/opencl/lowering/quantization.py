"""Quantised tensors: QuantizeLinear and its kin, and products of integers."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.expression import C_TYPES, Apply, Expr, Leaf
from gpu_inference.opencl.launch import Buf, Kernel, Launch
from gpu_inference.opencl.lowering.convolution import window_of
from gpu_inference.opencl.lowering.per_element import per_element
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
from gpu_inference.opencl.strided import strided_copy
from gpu_inference.opencl.value import Shape, device_dtype, layout_strides

FLOAT: Final = np.dtype(np.float32)
_GROUPS: Final = 64


def _along(builder: Builder, index: int, shape: Shape, axis: int, block: int) -> Leaf:
    """Scale or zero point as an expression of `shape`: one for all, one an index along `axis`, or a block."""
    own, dtype = builder.shape(index), builder.dtype(index)
    if math.prod(own) == 1:
        return builder.view(index, (1,) * len(shape))
    if len(own) == 1:
        return builder.view(index, tuple(d if a == axis else 1 for a, d in enumerate(shape)))
    if block <= 0 or shape[axis] % block:
        raise Unsupported(f"blocks of {block} along an axis of {shape[axis]}")
    x = builder.buf(index)
    leaf, y = builder.scratch(shape, dtype)
    loop = [*own[: axis + 1], block, *own[axis + 1 :]]
    strides = layout_strides(own, "plain")
    walk = [*strides[: axis + 1], 0, *strides[axis + 1 :]]
    plain = layout_strides(tuple(loop), "plain")
    builder.launch(strided_copy(x, y, loop, walk, plain, device_dtype(dtype).itemsize))
    return leaf


def _element_type(number: Any, default: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of an ONNX element type; 0 or None for the default."""
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(int(number))) if number else default


def saturated(value: Expr, zero_point: Expr | None, dtype: np.dtype[Any]) -> Apply:
    """Rounds to even, adds the zero point and keeps to the range of `dtype`.

    Raises:
        Unsupported: the type isn't an integer of at most 16 bits.
    """
    if dtype.name not in ("int8", "uint8", "int16", "uint16"):
        raise Unsupported(f"quantisation to {dtype}")
    info = np.iinfo(dtype)
    limits = f"{float(info.min)}f), {float(info.max)}f)"
    if zero_point is None:
        return Apply(f"fmin(fmax(rint({{0}}), {limits}", (value,), dtype)
    return Apply(f"fmin(fmax(rint({{0}}) + (float){{1}}, {limits}", (value, zero_point), dtype)


@lowers("QuantizeLinear")
def lower_quantize(node: Node, builder: Builder) -> None:
    """saturate(round(x / scale) + zero point); one scale for all, a channel or a block."""
    shape = builder.shape(0)
    default = builder.dtype(2) if builder.has(2) else np.dtype(np.uint8)
    dtype = _element_type(builder.attr("output_dtype"), default)
    if dtype.name not in ("int8", "uint8", "int16", "uint16"):
        raise Unsupported(f"QuantizeLinear to {dtype}")
    axis = int(builder.attr("axis", 1)) % max(len(shape), 1)
    block = int(builder.attr("block_size", 0))
    scale = _along(builder, 1, shape, axis, block)
    zero_point = _along(builder, 2, shape, axis, block) if builder.has(2) else None
    ratio = Apply("(float){0} / {1}", (builder.expr(0, shape), scale), FLOAT)
    builder.lazy(0, saturated(ratio, zero_point, dtype), shape)


@lowers("DequantizeLinear")
def lower_dequantize(node: Node, builder: Builder) -> None:
    """(x - zero point) * scale."""
    shape, source = builder.shape(0), builder.dtype(0)
    if source.name not in ("int8", "uint8", "int16", "uint16", "int32"):
        raise Unsupported(f"DequantizeLinear of {source}")
    dtype = _element_type(builder.attr("output_dtype"), builder.dtype(1))
    axis = int(builder.attr("axis", 1)) % max(len(shape), 1)
    block = int(builder.attr("block_size", 0))
    scale = _along(builder, 1, shape, axis, block)
    x = builder.expr(0, shape)
    if builder.has(2):
        zero_point = _along(builder, 2, shape, axis, block)
        result = Apply("(float)({0} - {1}) * {2}", (x, zero_point, scale), dtype)
    else:
        result = Apply("(float){0} * {1}", (x, scale), dtype)
    builder.lazy(0, result, shape)


@lowers("DynamicQuantizeLinear")
def lower_dynamic_quantize(node: Node, builder: Builder) -> None:
    """To uint8 with the scale and zero point that the tensor's own extent asks for."""
    shape = builder.shape(0)
    if builder.dtype(0) != FLOAT:
        raise Unsupported(f"DynamicQuantizeLinear of {builder.dtype(0)}")
    x = builder.buf(0)
    scale, zero_point = builder.output(1, (), FLOAT), builder.output(2, (), np.uint8)
    partial = builder.temporary(_GROUPS * 8)
    count = math.prod(shape)
    builder.launch(
        Launch(
            kernel=Kernel("extent.cl", "extent"),
            global_size=(_GROUPS * 64,),
            local_size=(64,),
            args=(x, partial, np.int32(count)),
            bytes=4.0 * count,
        )
    )
    per_element(builder, ("extent.cl", "parameters"), 1, [partial, scale, zero_point, _GROUPS])
    ratio = Apply("{0} / {1}", (builder.expr(0, shape), Leaf(builder.result(1))), FLOAT)
    builder.lazy(0, saturated(ratio, Leaf(builder.result(2)), np.dtype(np.uint8)), shape)
    builder.place(builder.result(0))


def _operands(
    builder: Builder, a: int, w: int, a_zero: int, w_zero: int
) -> tuple[list[Buf], list[tuple[str, int | str]]]:
    """Both operands and their zero points (zeros where left out), and the defines for their types."""
    types = [builder.dtype(index) for index in (a, w)]
    for dtype in types:
        if dtype.name not in ("int8", "uint8"):
            raise Unsupported(f"an integer product of {dtype}")
    zeros = [
        builder.buf(zero) if builder.has(zero) else builder.constant(np.zeros(1, dtype))
        for zero, dtype in zip((a_zero, w_zero), types, strict=True)
    ]
    defines: list[tuple[str, int | str]] = [("A", C_TYPES[types[0].name]), ("W", C_TYPES[types[1].name])]
    return [builder.buf(a), builder.buf(w), *zeros], defines


def _steps(builder: Builder, index: int, size: int) -> int:
    """From one zero point to the next: 0 where there is one for all.

    Raises:
        Unsupported: there is another number of them.
    """
    count = math.prod(builder.shape(index)) if builder.has(index) else 1
    if count not in (1, size):
        raise Unsupported(f"{count} zero points for {size} rows or columns")
    return 0 if count == 1 else 1


def _matmul(builder: Builder, indices: tuple[int, int, int, int]) -> tuple[Leaf, Shape]:
    """The integer product of two inputs as scratch memory, and its shape."""
    a, w = builder.shape(indices[0]), builder.shape(indices[1])
    if len(a) < 2 or len(w) < 2:
        raise Unsupported("an integer product of vectors")
    lead = tuple(np.broadcast_shapes(a[:-2], w[:-2]))
    batches = math.prod(lead)
    for own in (a[:-2], w[:-2]):
        if math.prod(own) not in (1, batches):
            raise Unsupported(f"an integer product with batches {a[:-2]} and {w[:-2]}")
    m, k, n = a[-2], a[-1], w[-1]
    steps = [_steps(builder, indices[2], m), _steps(builder, indices[3], n)]
    buffers, defines = _operands(builder, *indices)
    result = (*lead, m, n)
    leaf, y = builder.scratch(result, np.int32)
    count = math.prod(result)
    numbers = [count, m, n, k, math.prod(a[:-2]), math.prod(w[:-2]), *steps]
    per_element(builder, ("integer_product.cl", "integer_matmul"), count, [*buffers, y, *numbers], defines)
    return leaf, result


def _convolution(node: Node, builder: Builder, indices: tuple[int, int, int, int]) -> tuple[Leaf, Shape]:
    """The integer convolution of two inputs as scratch memory, and its shape."""
    x, w = builder.shape(indices[0]), builder.shape(indices[1])
    rank = len(x) - 2
    if rank > 3:
        raise Unsupported(f"an integer convolution over {rank} dimensions")
    window = window_of(node, x[2:], w[2:])
    spatial = tuple(
        (d + b + a - e) // s + 1
        for d, b, a, e, s in zip(
            x[2:], window.before, window.after, window.extent, window.strides, strict=True
        )
    )
    step = _steps(builder, indices[3], w[0])
    buffers, defines = _operands(builder, *indices)
    result = (x[0], w[0], *spatial)
    leaf, y = builder.scratch(result, np.int32)
    ones, zeros = [1] * (3 - rank), [0] * (3 - rank)
    numbers = [math.prod(result), w[0], w[1], int(builder.attr("group", 1)), step]
    for sizes in (x[2:], spatial, w[2:], window.strides, window.dilations):
        numbers += [*ones, *sizes]
    numbers += [*zeros, *window.before]
    per_element(builder, ("integer_product.cl", "integer_conv"), numbers[0], [*buffers, y, *numbers], defines)
    return leaf, result


@lowers("MatMulInteger")
def lower_matmul_integer(node: Node, builder: Builder) -> None:
    """A product of 8-bit matrices in 32 bits."""
    leaf, shape = _matmul(builder, (0, 1, 2, 3))
    builder.lazy(0, Apply("{0}", (leaf,), np.dtype(np.int32)), shape)


@lowers("ConvInteger")
def lower_conv_integer(node: Node, builder: Builder) -> None:
    """A convolution of 8-bit tensors in 32 bits."""
    leaf, shape = _convolution(node, builder, (0, 1, 2, 3))
    builder.lazy(0, Apply("{0}", (leaf,), np.dtype(np.int32)), shape)


def _requantised(builder: Builder, total: Expr, shape: Shape, scales: tuple[Expr, Expr]) -> None:
    """Output 0: the sums in 32 bits brought to the scale of inputs 6 and 7."""
    one = (1,) * len(shape)
    args = (total, *scales, builder.view(6, one))
    value = Apply("(float){0} * ({1} * {2} / {3})", args, FLOAT)
    builder.lazy(0, saturated(value, builder.view(7, one), builder.dtype(7)), shape)


@lowers("QLinearMatMul")
def lower_qlinear_matmul(node: Node, builder: Builder) -> None:
    """A product of quantised matrices, quantised again."""
    if math.prod(builder.shape(6)) != 1 or math.prod(builder.shape(7)) != 1:
        raise Unsupported("QLinearMatMul with a scale for each row of the result")
    leaf, shape = _matmul(builder, (0, 3, 2, 5))
    rank = len(shape)
    rows, columns = (1,) * (rank - 2) + (shape[-2], 1), (1,) * (rank - 1) + (shape[-1],)
    a = builder.view(1, rows if math.prod(builder.shape(1)) > 1 else (1,) * rank)
    b = builder.view(4, columns if math.prod(builder.shape(4)) > 1 else (1,) * rank)
    _requantised(builder, leaf, shape, (a, b))


@lowers("QLinearConv")
def lower_qlinear_conv(node: Node, builder: Builder) -> None:
    """A convolution of quantised tensors with a bias in 32 bits, quantised again."""
    leaf, shape = _convolution(node, builder, (0, 3, 2, 5))
    one = (1,) * len(shape)
    filters = (1, shape[1], *(1 for _ in shape[2:]))
    w_scale = builder.view(4, filters if math.prod(builder.shape(4)) > 1 else one)
    total: Expr = leaf
    if builder.has(8):
        total = Apply("{0} + {1}", (leaf, builder.view(8, filters)), np.dtype(np.int32))
    _requantised(builder, total, shape, (builder.view(1, one), w_scale))
