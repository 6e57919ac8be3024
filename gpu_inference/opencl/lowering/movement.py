"""Operators that move elements or only look at shapes."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from gpu_inference.graph.folding import resolve_reshape
from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.expression import C_TYPES, Apply
from gpu_inference.opencl.launch import Buf, Kernel, Launch
from gpu_inference.opencl.lowering.registry import Unsupported, lowers
from gpu_inference.opencl.strided import fill, strided_copy
from gpu_inference.opencl.value import device_dtype, layout_strides, slice_strides

GROUP: Final = 64
BIT_TYPES: Final = {1: "uchar", 2: "ushort", 4: "uint", 8: "ulong"}


def itemsize(builder: Builder, index: int = 0) -> int:
    """Bytes of an element of an input on the device."""
    return device_dtype(builder.dtype(index)).itemsize


@lowers("Shape")
def lower_shape(node: Node, builder: Builder) -> None:
    """The shape, known on the host."""
    start, end = int(builder.attr("start", 0)), builder.attr("end")
    builder.set_host(0, np.asarray(builder.shape(0)[start:end], np.int64))


@lowers("Size")
def lower_size(node: Node, builder: Builder) -> None:
    """The number of elements, known on the host."""
    builder.set_host(0, np.asarray(math.prod(builder.shape(0)), np.int64))


@lowers("Identity")
def lower_identity(node: Node, builder: Builder) -> None:
    """The same tensor."""
    builder.alias(0, 0, builder.shape(0))


@lowers("Dropout")
def lower_dropout(node: Node, builder: Builder) -> None:
    """Identity, and a mask of ones, as long as nothing is dropped."""
    if builder.has(2) and bool(builder.known(2).reshape(-1)[0]):
        ratio = float(builder.known(1).reshape(-1)[0]) if builder.has(1) else 0.5
        if ratio > 0.0:
            raise Unsupported("Dropout that drops (training mode)")
    builder.alias(0, 0, builder.shape(0))
    if builder.wants(1):
        shape = builder.shape(0)
        mask = builder.output(1, shape, bool if node.opset >= 10 else builder.dtype(0))
        builder.launch(fill(mask, math.prod(shape), np.bool_(True)))


@lowers("Reshape")
def lower_reshape(node: Node, builder: Builder) -> None:
    """Another shape of the same elements."""
    target = builder.known(1)
    builder.alias(0, 0, resolve_reshape(node, builder.shape(0), target))


@lowers("Flatten")
def lower_flatten(node: Node, builder: Builder) -> None:
    """Two dimensions."""
    shape = builder.shape(0)
    axis = int(builder.attr("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    builder.alias(0, 0, (math.prod(shape[:axis]), math.prod(shape[axis:])))


@lowers("Squeeze")
def lower_squeeze(node: Node, builder: Builder) -> None:
    """Without some dimensions of 1."""
    shape = builder.shape(0)
    if builder.has(1):
        axes = {a % len(shape) for a in builder.ints(1)}
    else:
        axes = {axis for axis, d in enumerate(shape) if d == 1}
    builder.alias(0, 0, [d for axis, d in enumerate(shape) if axis not in axes])


@lowers("Unsqueeze")
def lower_unsqueeze(node: Node, builder: Builder) -> None:
    """With more dimensions of 1."""
    shape, axes = list(builder.shape(0)), builder.ints(1)
    rank = len(shape) + len(axes)
    for axis in sorted(a % rank for a in axes):
        shape.insert(axis, 1)
    builder.alias(0, 0, shape)


@lowers("Transpose")
def lower_transpose(node: Node, builder: Builder) -> None:
    """Dimensions in another order; nothing moves where only dimensions of 1 change places."""
    shape = builder.shape(0)
    order = [int(a) for a in builder.attr("perm", range(len(shape) - 1, -1, -1))]
    result = [shape[axis] for axis in order]
    large = [axis for axis in order if shape[axis] > 1]
    if large == sorted(large):
        builder.alias(0, 0, result)
        return
    x, strides = builder.strided(0)
    y = builder.output(0, result, builder.dtype(0))
    steps = [strides[axis] for axis in order]
    builder.launch(
        strided_copy(x, y, result, steps, layout_strides(tuple(result), "plain"), itemsize(builder))
    )


@lowers("Concat")
def lower_concat(node: Node, builder: Builder) -> None:
    """One copy an input, into its place."""
    shapes = [builder.shape(i) for i in range(len(node.inputs))]
    axis = int(builder.attr("axis")) % len(shapes[0])
    result = list(shapes[0])
    result[axis] = sum(shape[axis] for shape in shapes)
    whole = [shape for shape in shapes if 0 not in shape]
    if axis == 1 and len(result) == 4 and _concat_in_place(builder, shapes, tuple(result)):
        return
    nhwc = axis == 1 and len(result) == 4 and all(shape[1] % 4 == 0 for shape in shapes)
    nhwc = nhwc and all(builder.is_nhwc(i) for i in range(len(shapes)))
    layout = "nhwc" if nhwc and whole else "plain"
    sources = [builder.strided_slice(i) for i in range(len(shapes))]
    y = builder.output(0, result, builder.dtype(0), "nhwc" if layout == "nhwc" else "plain")
    strides = layout_strides(tuple(result), "nhwc" if layout == "nhwc" else "plain")
    order = [0, *range(2, len(result)), 1] if layout == "nhwc" else list(range(len(result)))
    start = 0
    for (x, steps, first), shape in zip(sources, shapes, strict=True):
        if 0 not in shape:
            builder.launch(
                strided_copy(
                    x,
                    y,
                    [shape[a] for a in order],
                    [steps[a] for a in order],
                    [strides[a] for a in order],
                    itemsize(builder),
                    first,
                    start * strides[axis],
                )
            )
        start += shape[axis]


def _concat_in_place(builder: Builder, shapes: list[tuple[int, ...]], result: tuple[int, ...]) -> bool:
    """Copies only the inputs that weren't computed in their place; False where none was."""
    parts = [shape[1] for shape in shapes]
    missing = builder.concatenated(0, result, builder.dtype(0), parts)
    if missing is None:
        return False
    y, at = builder.written(0)
    strides = slice_strides(result, at)
    for number in missing:
        x, steps, first = builder.strided_slice(number)
        order, start = [0, 2, 3, 1], at.offset + sum(parts[:number])
        sizes = [shapes[number][a] for a in order]
        walks = [steps[a] for a in order], [strides[a] for a in order]
        builder.launch(strided_copy(x, y, sizes, *walks, itemsize(builder), first, start))
    return True


def slice_range(start: int, end: int, step: int, size: int) -> tuple[int, int]:
    """First index and number of elements of one axis of Slice."""
    start = min(max(start + size if start < 0 else start, 0), size - 1 if step < 0 else size)
    end = end + size if end < 0 else end
    if step < 0:
        end = min(max(end, -1), size)
        return start, max(0, -(-(start - end) // -step))
    end = min(max(end, 0), size)
    return start, max(0, -(-(end - start) // step))


@lowers("Slice")
def lower_slice(node: Node, builder: Builder) -> None:
    """A strided copy."""
    shape = builder.shape(0)
    starts, ends = builder.ints(1), builder.ints(2)
    axes = builder.ints(3) if builder.has(3) else list(range(len(starts)))
    steps = builder.ints(4) if builder.has(4) else [1] * len(starts)
    first, result, step_of = [0] * len(shape), list(shape), [1] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(shape)
        first[axis], result[axis] = slice_range(start, end, step, shape[axis])
        step_of[axis] = step
    if tuple(result) == shape and all(step == 1 for step in step_of):
        builder.alias(0, 0, shape)
        return
    copy_window(builder, 0, first, result, step_of)


def copy_window(builder: Builder, output: int, first: list[int], result: list[int], steps: list[int]) -> None:
    """An output that is a window of input 0: from `first`, of shape `result`, every `steps`-th element."""
    x, strides, before = builder.strided_slice(0)
    offset = before + sum(f * s for f, s in zip(first, strides, strict=True))
    y = builder.output(output, result, builder.dtype(0))
    walk = [s * step for s, step in zip(strides, steps, strict=True)]
    plain = layout_strides(tuple(result), "plain")
    builder.launch(strided_copy(x, y, result, walk, plain, itemsize(builder), offset))


@lowers("Split")
def lower_split(node: Node, builder: Builder) -> None:
    """A copy an output."""
    shape = builder.shape(0)
    axis = int(builder.attr("axis", 0)) % len(shape)
    if builder.has(1):
        sizes = builder.ints(1)
    else:
        parts = int(builder.attr("num_outputs", len(node.outputs)))
        step = -(-shape[axis] // parts)
        sizes = [max(0, min(step, shape[axis] - i * step)) for i in range(parts)]
    start = 0
    for output, size in enumerate(sizes[: len(node.outputs)]):
        first = [start if a == axis else 0 for a in range(len(shape))]
        copy_window(
            builder,
            output,
            first,
            [size if a == axis else d for a, d in enumerate(shape)],
            [1] * len(shape),
        )
        start += size


@lowers("Expand")
def lower_expand(node: Node, builder: Builder) -> None:
    """Broadcast; part of what comes next where that is elementwise."""
    target = [int(d) for d in builder.known(1).reshape(-1)]
    shape = tuple(np.broadcast_shapes(builder.shape(0), tuple(target)))
    builder.lazy(0, Apply("{0}", (builder.expr(0, shape),), builder.dtype(0)), shape)


@lowers("Tile")
def lower_tile(node: Node, builder: Builder) -> None:
    """Repeats along every dimension."""
    shape, repeats = builder.shape(0), builder.ints(1)
    x, strides = builder.strided(0)
    result = [d * r for d, r in zip(shape, repeats, strict=True)]
    y = builder.output(0, result, builder.dtype(0))
    loop: list[int] = []
    steps: list[int] = []
    for size, repeat, stride in zip(shape, repeats, strides, strict=True):
        loop += [repeat, size]
        steps += [0, stride]
    builder.launch(strided_copy(x, y, loop, steps, layout_strides(tuple(loop), "plain"), itemsize(builder)))


@lowers("ConstantOfShape")
def lower_constant_of_shape(node: Node, builder: Builder) -> None:
    """One value everywhere."""
    shape = builder.ints(0)
    value = np.asarray(builder.attr("value", np.zeros(1, np.float32))).reshape(-1)[0]
    y = builder.output(0, shape, value.dtype)
    builder.launch(fill(y, math.prod(shape), value))


@lowers("Range")
def lower_range(node: Node, builder: Builder) -> None:
    """Numbers from start to limit, known on the host."""
    start, limit, delta = (builder.known(i).reshape(-1)[0] for i in range(3))
    builder.set_host(0, np.arange(start, limit, delta, dtype=builder.dtype(0)))


@lowers("EyeLike")
def lower_eye_like(node: Node, builder: Builder) -> None:
    """Ones on a diagonal, known on the host."""
    from onnx import helper

    rows, columns = builder.shape(0)
    dtype: Any = builder.dtype(0)
    if builder.attr("dtype") is not None:
        dtype = helper.tensor_dtype_to_np_dtype(builder.attr("dtype"))
    builder.set_host(0, np.eye(rows, columns, int(builder.attr("k", 0)), dtype))


_GATHER: Final = """
/* y[o, i, r] = x[o, index[i], r]: one work-item an element; negative indices count from the end. */
__kernel void gather(__global const T* restrict x, __global const I* restrict index, __global T* restrict y,
                     const int n, const int count, const int inner, const int size) {
    const int e = get_global_id(0);
    if (e >= n) return;
    const int r = e % inner, i = (e / inner) % count, o = e / inner / count;
    int k = (int)index[i];
    k += k < 0 ? size : 0;
    y[e] = x[(o * size + k) * inner + r];
}
"""


@lowers("Gather")
def lower_gather(node: Node, builder: Builder) -> None:
    """Rows picked by index; a single known index is a slice."""
    shape, indices = builder.shape(0), builder.shape(1)
    axis = int(builder.attr("axis", 0)) % len(shape)
    result = [*shape[:axis], *indices, *shape[axis + 1 :]]
    inner, count = math.prod(shape[axis + 1 :]), math.prod(indices)
    x, index = builder.buf(0), builder.buf(1)
    y = builder.output(0, result, builder.dtype(0))
    n = math.prod(result)
    defines = (("I", C_TYPES[builder.dtype(1).name]), ("T", BIT_TYPES[itemsize(builder)]))
    builder.launch(
        Launch(
            kernel=Kernel(None, "gather", defines, _GATHER),
            global_size=(-(-n // GROUP) * GROUP,),
            local_size=(GROUP,),
            args=(x, index, y, *map(np.int32, (n, count, inner, shape[axis]))),
            bytes=2.0 * n * itemsize(builder),
        )
    )


def _pad_source(rank: int, mode: str) -> str:
    """One work-item makes one element of the padded tensor."""
    sizes = "".join(f"const int d{a}, const int s{a}, const int b{a}, const int t{a}, " for a in range(rank))
    lines = []
    for a in range(rank - 1, -1, -1):
        lines.append(f"    int k{a} = r % d{a} - b{a}; r /= d{a};")
        if mode == "constant":
            lines.append(f"    inside = inside && k{a} >= 0 && k{a} < s{a};")
        elif mode == "edge":
            lines.append(f"    k{a} = clamp(k{a}, 0, s{a} - 1);")
        elif mode == "wrap":
            lines.append(f"    k{a} %= s{a}; k{a} += k{a} < 0 ? s{a} : 0;")
        else:  # reflect: a triangle wave of period 2 (s - 1)
            lines.append(
                f"    {{ const int p = 2 * max(s{a} - 1, 1); k{a} %= p; k{a} += k{a} < 0 ? p : 0; "
                f"k{a} = k{a} < s{a} ? k{a} : p - k{a}; }}"
            )
    index = " + ".join(f"k{a} * t{a}" for a in range(rank))
    read = f"inside ? x[{index}] : *fill" if mode == "constant" else f"x[{index}]"
    body = "\n".join(lines)
    return (
        f"__kernel void pad(__global const T* restrict x, __global const T* restrict fill, "
        f"__global T* restrict y,\n    {sizes}const int n) {{\n"
        f"    const int i = get_global_id(0);\n    if (i >= n) return;\n    int r = i;\n"
        f"    int inside = 1;\n{body}\n    y[i] = {read};\n}}\n"
    )


@lowers("Pad")
def lower_pad(node: Node, builder: Builder) -> None:
    """More elements around, constant, or repeated from the edge, mirrored or wrapped; or fewer."""
    shape, pads = builder.shape(0), builder.ints(1)
    axes = builder.ints(3) if builder.has(3) else list(range(len(shape)))
    before, after = [0] * len(shape), [0] * len(shape)
    for position, axis in enumerate(axes):
        before[axis % len(shape)] = pads[position]
        after[axis % len(shape)] = pads[position + len(axes)]
    result = [d + b + e for d, b, e in zip(shape, before, after, strict=True)]
    x, strides = builder.strided(0)
    if builder.has(2):
        value = builder.buf(2)
    else:
        value = builder.constant(np.zeros(1, device_dtype(builder.dtype(0))))
    y = builder.output(0, result, builder.dtype(0))
    launch_pad(builder, x, value, y, (shape, result, before, list(strides)))


def launch_pad(
    builder: Builder,
    x: Buf,
    value: Buf,
    y: Buf,
    sizes: tuple[tuple[int, ...], list[int], list[int], list[int]],
) -> None:
    """One launch for input 0 of the node: shape, padded shape, elements before, strides."""
    shape, result, before, strides = sizes
    numbers = []
    for axis in range(len(shape)):
        numbers += [result[axis], shape[axis], before[axis], strides[axis]]
    n = math.prod(result)
    source = _pad_source(len(shape), str(builder.attr("mode", "constant")))
    builder.launch(
        Launch(
            kernel=Kernel(None, "pad", (("T", BIT_TYPES[itemsize(builder)]),), source),
            global_size=(-(-n // GROUP) * GROUP,),
            local_size=(GROUP,),
            args=(x, value, y, *map(np.int32, numbers), np.int32(n)),
            bytes=2.0 * n * itemsize(builder),
        )
    )


@lowers("DepthToSpace", "SpaceToDepth")
def lower_blocks(node: Node, builder: Builder) -> None:
    """Blocks of pixels from channels, or into channels: a transposed copy of six dimensions."""
    n, c, h, w = builder.shape(0)
    b = int(builder.attr("blocksize"))
    x, (sn, sc, sh, sw) = builder.strided(0)
    if node.op == "SpaceToDepth":
        result = (n, c * b * b, h // b, w // b)
        loop = [n, b, b, c, h // b, w // b]
        steps = [sn, sh, sw, sc, b * sh, b * sw]
    else:
        k = c // (b * b)
        result = (n, k, h * b, w * b)
        loop = [n, k, h, b, w, b]
        if builder.attr("mode", "DCR") == "DCR":
            steps = [sn, sc, sh, b * k * sc, sw, k * sc]
        else:
            steps = [sn, b * b * sc, sh, b * sc, sw, sc]
    y = builder.output(0, result, builder.dtype(0))
    builder.launch(strided_copy(x, y, loop, steps, layout_strides(tuple(loop), "plain"), itemsize(builder)))


_TRILU: Final = """
/* The triangle above or below diagonal k; zeros elsewhere. */
__kernel void trilu(__global const T* restrict x, __global T* restrict y, const int n, const int rows,
                    const int columns, const int k) {
    const int i = get_global_id(0);
    if (i >= n) return;
    const int column = i % columns, row = (i / columns) % rows;
    y[i] = (UPPER ? column - row >= k : column - row <= k) ? x[i] : (T)0;
}
"""


@lowers("Trilu")
def lower_trilu(node: Node, builder: Builder) -> None:
    """Upper or lower triangle of each matrix."""
    shape = builder.shape(0)
    k = builder.ints(1)[0] if builder.has(1) else 0
    x = builder.buf(0)
    y = builder.output(0, shape, builder.dtype(0))
    n = math.prod(shape)
    defines = (("T", BIT_TYPES[itemsize(builder)]), ("UPPER", int(builder.attr("upper", 1))))
    k = max(min(k, 2**30), -(2**30))
    builder.launch(
        Launch(
            kernel=Kernel(None, "trilu", defines, _TRILU),
            global_size=(-(-n // GROUP) * GROUP,),
            local_size=(GROUP,),
            args=(x, y, *map(np.int32, (n, shape[-2], shape[-1], k))),
            bytes=2.0 * n * itemsize(builder),
        )
    )
