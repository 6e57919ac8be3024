"""Operators on the host: shape arithmetic and constants, evaluated with NumPy while a plan is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from onnx import helper

from gpu_inference.errors import ModelError
from gpu_inference.graph.ir import Array, Node

HostFunction = Callable[..., Array | list[Array]]


def _axis_list(axes: Array | None) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(a) for a in axes.reshape(-1))


def _slice(node: Node, x: Array, starts: Array, ends: Array, *rest: Array | None) -> Array:
    axes = rest[0] if rest else None
    steps = rest[1] if len(rest) > 1 else None
    index: list[Any] = [slice(None)] * x.ndim
    count = len(starts)
    for i in range(count):
        axis = int(axes[i]) if axes is not None else i
        step = int(steps[i]) if steps is not None else 1
        start, end = int(starts[i]), int(ends[i])
        size = x.shape[axis]
        if step < 0 and end < -size:
            index[axis] = slice(start, None, step)
        else:
            index[axis] = slice(start, end, step)
    return np.asarray(x[tuple(index)])


def _shape(node: Node, x: Array) -> Array:
    start = int(node.attributes.get("start", 0))
    end = node.attributes.get("end")
    return np.asarray(x.shape[start:end], np.int64)


def _cast(node: Node, x: Array) -> Array:
    return x.astype(helper.tensor_dtype_to_np_dtype(node.attributes["to"]))


def _dequantise(node: Node, x: Array, scale: Array, zero: Array | None = None) -> Array:
    """Weights stored as integers: once they are floats again, their reader is planned as any other."""
    axis, block = int(node.attributes.get("axis", 1)), int(node.attributes.get("block_size", 0))

    def spread(array: Array) -> Array:
        if array.size == 1:
            return array.reshape(())
        if block:
            return np.repeat(array, block, axis).take(np.arange(x.shape[axis]), axis)
        return array.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])

    offset = np.float32(0) if zero is None else spread(zero).astype(np.float32)
    return np.asarray((x.astype(np.float32) - offset) * spread(scale).astype(np.float32), scale.dtype)


def _reshape(node: Node, x: Array, shape: Array) -> Array:
    return x.reshape(resolve_reshape(node, x.shape, shape))


def resolve_reshape(node: Node, shape: tuple[int, ...], target: Array) -> tuple[int, ...]:
    """The shape that Reshape's second input asks for, 0 and -1 replaced.

    Raises:
        ModelError: a tensor of `shape` can't have it.
    """
    wanted = [int(d) for d in target.reshape(-1)]
    dims = list(wanted)
    if not node.attributes.get("allowzero", 0):
        dims = [shape[i] if d == 0 and i < len(shape) else d for i, d in enumerate(dims)]
    total, rest = math.prod(shape), math.prod(d for d in dims if d != -1)
    if dims.count(-1) == 1 and rest > 0:
        dims[dims.index(-1)] = total // rest
    elif -1 in dims and total == rest == 0:
        dims[dims.index(-1)] = 0
    if min(dims, default=0) < 0 or math.prod(dims) != total:
        raise ModelError(
            f"{node.label}: a tensor {list(shape)} of {total} elements can't become {wanted}: "
            "give inputs of another shape, or fix the model"
        )
    return tuple(dims)


def _squeeze(node: Node, x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, _axis_list(axes))


def _unsqueeze(node: Node, x: Array, axes: Array) -> Array:
    rank = x.ndim + axes.size
    shape = list(x.shape)
    for axis in sorted(int(a) % rank for a in axes.reshape(-1)):
        shape.insert(axis, 1)
    return x.reshape(shape)


def _gather(node: Node, x: Array, indices: Array) -> Array:
    return np.take(x, indices.astype(np.int64), int(node.attributes.get("axis", 0)))


def _divide(node: Node, a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.integer):
        quotient = np.abs(a) // np.abs(b) * (np.sign(a) * np.sign(b))
        return np.asarray(quotient.astype(a.dtype))
    return np.asarray(a / b)


def _constant_of_shape(node: Node, shape: Array) -> Array:
    value = np.asarray(node.attributes.get("value", np.zeros(1, np.float32)))
    return np.full(tuple(int(d) for d in shape), value.reshape(-1)[0], value.dtype)


def _split(node: Node, x: Array, sizes: Array | None = None) -> list[Array]:
    axis = int(node.attributes.get("axis", 0))
    if sizes is None:
        parts = len(node.outputs)
        step = -(-x.shape[axis] // parts)
        bounds = [min(step * i, x.shape[axis]) for i in range(1, parts)]
    else:
        bounds = list(np.cumsum(sizes)[:-1])
    return list(np.split(x, bounds, axis))


def _reduce(function: Callable[..., Any]) -> HostFunction:
    def run(node: Node, x: Array, axes: Array | None = None) -> Array:
        keep = bool(node.attributes.get("keepdims", 1))
        if (axes is None or axes.size == 0) and node.attributes.get("noop_with_empty_axes", 0):
            return x
        axis = _axis_list(axes) or None
        return np.asarray(function(x, axis=axis, keepdims=keep)).astype(x.dtype)

    return run


def _mod(node: Node, a: Array, b: Array) -> Array:
    return np.asarray(np.fmod(a, b) if node.attributes.get("fmod", 0) else np.mod(a, b))


def _transpose(node: Node, x: Array) -> Array:
    return np.ascontiguousarray(np.transpose(x, node.attributes.get("perm")))


def _range(node: Node, start: Array, limit: Array, delta: Array) -> Array:
    return np.arange(start.reshape(-1)[0], limit.reshape(-1)[0], delta.reshape(-1)[0], dtype=start.dtype)


def _expand(node: Node, x: Array, shape: Array) -> Array:
    return x * np.ones(tuple(int(d) for d in shape), x.dtype)


def _each(function: Callable[..., Any]) -> HostFunction:
    return lambda node, *arrays: np.asarray(function(*arrays))


def _fold(function: Callable[..., Any]) -> HostFunction:
    def run(node: Node, first: Array, *rest: Array) -> Array:
        for array in rest:
            first = function(first, array)
        return first

    return run


HOST: Final[dict[str, HostFunction]] = {
    "Shape": _shape,
    "Size": lambda node, x: np.asarray(x.size, np.int64),
    "Cast": _cast,
    "DequantizeLinear": _dequantise,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": lambda node, *xs: np.concatenate(xs, int(node.attributes["axis"])),
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Expand": _expand,
    "Tile": lambda node, x, repeats: np.tile(x, tuple(int(r) for r in repeats)),
    "Transpose": _transpose,
    "Split": _split,
    "Identity": lambda node, x: x,
    "Add": _each(np.add),
    "Sub": _each(np.subtract),
    "Mul": _each(np.multiply),
    "Div": _divide,
    "Mod": _mod,
    "Neg": _each(np.negative),
    "Abs": _each(np.abs),
    "Floor": _each(np.floor),
    "Ceil": _each(np.ceil),
    "Sqrt": _each(np.sqrt),
    "Max": _fold(np.maximum),
    "Min": _fold(np.minimum),
    "Not": _each(np.logical_not),
    "And": _each(np.logical_and),
    "Or": _each(np.logical_or),
    "Equal": _each(np.equal),
    "Less": _each(np.less),
    "LessOrEqual": _each(np.less_equal),
    "Greater": _each(np.greater),
    "GreaterOrEqual": _each(np.greater_equal),
    "Where": _each(np.where),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
}


def evaluate(node: Node, arrays: list[Array | None]) -> list[Array] | None:
    """The node's outputs, or None where the host has no function for it.

    Args:
        node: with ONNX's newest form of inputs (see importer).
        arrays: one an input, None where it is left out.
    """
    function = HOST.get(node.op)
    if node.domain or function is None:
        return None
    while arrays and arrays[-1] is None:
        arrays = arrays[:-1]
    result = function(node, *arrays)
    return [np.asarray(r) for r in result] if isinstance(result, list) else [np.asarray(result)]
