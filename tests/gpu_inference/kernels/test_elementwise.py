"""Generated elementwise kernels: four floats at a time where every tensor allows it, and right either way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpu_inference.opencl.codegen import Operand, elementwise
from gpu_inference.opencl.expression import Apply, Leaf, Scalar
from gpu_inference.opencl.launch import Buf
from gpu_inference.opencl.timing import LaunchTimer
from gpu_inference.opencl.value import Slice, Value

FLOAT = np.dtype(np.float32)


def run(
    timer: LaunchTimer,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    dtype: np.dtype = FLOAT,
    sliced: Slice | None = None,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """2 a + b for a dense `a` and a strided `b`: the result, what NumPy says, and whether it went by four."""
    rng = np.random.default_rng(1)
    a = rng.integers(-50, 50, shape).astype(dtype)
    extent = offset + 1 + sum((d - 1) * s for d, s in zip(shape, strides, strict=True))
    pool = rng.integers(-50, 50, extent + 8).astype(dtype)
    b = np.lib.stride_tricks.as_strided(pool[offset:], shape, [s * dtype.itemsize for s in strides])
    first, second = Value("a", shape, dtype), Value("b", shape, dtype)
    expr = Apply("{0} * {1} + {2}", (Leaf(first), Scalar(2, dtype), Leaf(second)), dtype)
    dense = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    operands = {first: Operand(Buf("a"), dense), second: Operand(Buf("b"), strides, offset)}
    launch = elementwise(expr, shape, operands, Buf("y"), dtype, sliced)
    pixels, pitch = math.prod(shape[:-1]), sliced.pitch if sliced else shape[-1]
    y = timer.empty(4 * pixels * pitch)
    timer.run([launch], {"a": timer.upload(a), "b": timer.upload(pool), "y": y})
    found = timer.download(y, (pixels, pitch)).view(dtype)
    if sliced:
        outside = np.delete(found, np.s_[sliced.offset : sliced.offset + shape[-1]], axis=1)
        assert np.isnan(outside).all(), "wrote outside its channels"
        found = found[:, sliced.offset : sliced.offset + shape[-1]]
    return found.reshape(shape), (2 * a + b).astype(dtype), "float4" in str(launch.kernel.source)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "by_four"),
    [
        ((3, 5, 8), (40, 8, 1), 0, True),  # dense
        ((3, 3, 3), (9, 3, 1), 0, False),  # dense, an odd number
        ((5, 5, 4), (0, 0, 1), 0, True),  # one row for all
        ((5, 5, 8), (5, 1, 0), 0, True),  # one number a row
        ((6, 7), (0, 1), 0, False),  # rows that are no multiple of four
        ((2, 6), (1, 0), 0, False),
        ((4, 4, 4), (1, 4, 16), 0, False),  # transposed
        ((4, 4), (9, 1), 0, False),  # rows that don't begin on 16 bytes
        ((4, 4), (12, 1), 4, True),  # channels of a wider tensor
        ((4, 4), (12, 1), 2, False),
        ((4, 4), (0, 0), 3, True),  # one number of many
        ((1, 1), (1, 1), 0, False),
    ],
)
def test_any_strides(
    timer: LaunchTimer, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, by_four: bool
) -> None:
    found, want, wide = run(timer, shape, strides, offset)
    np.testing.assert_array_equal(found, want)
    assert wide == by_four


def test_integers_go_one_by_one(timer: LaunchTimer) -> None:
    found, want, wide = run(timer, (4, 8), (8, 1), dtype=np.dtype(np.int32))
    np.testing.assert_array_equal(found, want)
    assert not wide


@pytest.mark.parametrize(
    ("at", "by_four"), [(Slice(20, 8), True), (Slice(18, 8), False), (Slice(20, 6), False)]
)
def test_into_a_wider_tensor(timer: LaunchTimer, at: Slice, by_four: bool) -> None:
    found, want, wide = run(timer, (3, 2, 8), (16, 8, 1), sliced=at)
    np.testing.assert_array_equal(found, want)
    assert wide == by_four
