from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpu_inference.opencl.epilogue import Epilogue, reference
from gpu_inference.opencl.gemm import GemmChoice, GemmShape, candidates, plan_gemm
from gpu_inference.opencl.launch import Buf
from gpu_inference.opencl.tile import Tile
from gpu_inference.opencl.timing import LaunchTimer
from gpu_inference.opencl.traits import RX580
from gpu_inference.opencl.weights import WEIGHT_TYPES, WeightType, dequantised

PADDED = GemmChoice("tile", Tile(32, 32, 16, 4, 4, unroll=4))
SLICED = GemmChoice("tile", Tile(32, 64, 32, 4, 4, ks=2, swizzle=True))
EPILOGUE = Epilogue(bias=True, residual="before", activation="clip", p0=-1.0, p1=6.0)

Check = Callable[..., None]


@pytest.fixture
def check(timer: LaunchTimer) -> Check:
    """Runs a product and compares it with NumPy in float64."""

    def run(shape: GemmShape, choice: GemmChoice | None, epilogue: Epilogue = EPILOGUE) -> None:
        rng = np.random.default_rng(3)
        s = shape
        stored: Any = np.float16 if s.halves else np.float32
        itemsize = np.dtype(stored).itemsize
        a_rows, a_columns = (s.k, s.m) if s.trans_a else (s.m, s.k)
        b_rows, b_columns = (s.n, s.k) if s.trans_b else (s.k, s.n)
        b_strides = (0,) * len(s.batch) if s.constant_b else s.b_strides

        def memory(strides: tuple[int, ...], floats: int) -> Any:
            extent = floats + sum((n - 1) * t for n, t in zip(s.batch, strides, strict=True))
            return rng.standard_normal(extent, np.float32).astype(stored)

        def view(flat: Any, strides: tuple[int, ...], rows: int, columns: int) -> Any:
            steps = (*(itemsize * t for t in strides), itemsize * columns, itemsize)
            return np.lib.stride_tricks.as_strided(flat, (*s.batch, rows, columns), steps)

        a_flat, b_flat = memory(s.a_strides, a_rows * a_columns), memory(b_strides, b_rows * b_columns)
        a, b = view(a_flat, s.a_strides, a_rows, a_columns), view(b_flat, b_strides, b_rows, b_columns)
        a, b = a.swapaxes(-1, -2) if s.trans_a else a, b.swapaxes(-1, -2) if s.trans_b else b
        if s.constant_b:  # as it is stored: a scale for each column
            b = dequantised(np.ascontiguousarray(b[(0,) * len(s.batch)].T, np.float32), s.weights).T
        along_m, along_n = s.bias_strides
        bias = rng.standard_normal((s.m - 1) * along_m + (s.n - 1) * along_n + 1, np.float32)
        residual = rng.standard_normal((*s.batch, s.m, s.n), np.float32).astype(stored)
        product = (a.astype(np.float64) @ b.astype(np.float64) * s.alpha).astype(np.float32)
        bias_matrix = np.lib.stride_tricks.as_strided(bias, (s.m, s.n), (4 * along_m, 4 * along_n))
        want = reference(product, epilogue, bias_matrix, residual)

        plan = plan_gemm(s, epilogue, timer.traits, choice)
        packed = plan.pack(b_flat.reshape(b_rows, b_columns).astype(np.float32)) if s.constant_b else b_flat
        buffers = {
            "a": timer.upload(a_flat),
            "b": timer.upload(packed),
            "bias": timer.upload(bias),
            "res": timer.upload(residual),
            "c": timer.empty(want.size * itemsize),
            "ws": timer.empty(plan.workspace_bytes),
        }
        launches = plan.launches(
            Buf("a"),
            Buf("b"),
            Buf("bias") if epilogue.bias else None,
            Buf("res") if epilogue.residual != "none" else None,
            Buf("c"),
            Buf("ws"),
        )
        timer.run(launches, buffers)
        got = timer.download(buffers["c"], want.shape, stored)
        relative = 6e-4 if s.halves else 0.0
        np.testing.assert_allclose(got, want, atol=4e-6 * np.sqrt(s.k) + 1e-6, rtol=relative)

    return run


SHAPES = [
    GemmShape(33, 36, 20),
    GemmShape(5, 7, 9),
    GemmShape(37, 35, 33, trans_a=True),
    GemmShape(37, 35, 33, trans_b=True),
    GemmShape(36, 32, 20, trans_a=True, trans_b=True, alpha=0.5),
    GemmShape(17, 22, 40, constant_b=True),
    GemmShape(17, 22, 40, constant_b=True, trans_b=True, bias_strides=(1, 0)),
    GemmShape(5, 8, 12, batch=(2, 3), a_strides=(180, 60), b_strides=(0, 96)),
    GemmShape(9, 8, 6, batch=(3,), a_strides=(0,), b_strides=(48,), bias_strides=(8, 1)),
    GemmShape(6, 8, 6, bias_strides=(0, 0)),
    GemmShape(64, 64, 32),
    GemmShape(64, 64, 32, trans_a=True, trans_b=True),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("choice", [None, PADDED, SLICED], ids=lambda c: c.label if c else "default")
def test_product_agrees_with_numpy(check: Check, shape: GemmShape, choice: GemmChoice | None) -> None:
    check(shape, choice)


def test_split_inner_dimension_adds_up(check: Check) -> None:
    check(GemmShape(33, 36, 200), GemmChoice("tile", PADDED.tile, split=4))


@pytest.mark.parametrize("k", [1, 37, 64, 200])
@pytest.mark.parametrize("m", [1, 3])
def test_few_rows_times_a_constant_matrix(check: Check, k: int, m: int) -> None:
    check(GemmShape(m, 50, k, constant_b=True, trans_b=True), GemmChoice("gemv"))
    check(GemmShape(m, 50, k, constant_b=True), GemmChoice("gemv", lanes=64), Epilogue())


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_register_kernel_for_any_number_of_rows(check: Check, rows: int) -> None:
    check(GemmShape(7, 70, 11), GemmChoice("direct", rows=rows))


STORED = WEIGHT_TYPES[1:]


@pytest.mark.parametrize("weights", STORED)
@pytest.mark.parametrize(
    ("shape", "choice"),
    [
        (GemmShape(17, 22, 40, constant_b=True), PADDED),
        (GemmShape(17, 22, 40, constant_b=True, trans_b=True, alpha=0.5, bias_strides=(1, 0)), SLICED),
        (GemmShape(9, 12, 20, (2,), (180,), (), constant_b=True), PADDED),
        (GemmShape(64, 64, 32, constant_b=True), PADDED),
        (GemmShape(33, 36, 200, constant_b=True), GemmChoice("tile", PADDED.tile, split=4)),
        (GemmShape(3, 50, 37, constant_b=True, trans_b=True, alpha=2.0), GemmChoice("gemv")),
        (GemmShape(7, 70, 11, constant_b=True), GemmChoice("direct", rows=4)),
    ],
    ids=lambda value: value.label if isinstance(value, GemmChoice) else str(value),
)
def test_product_with_stored_weights(
    check: Check, shape: GemmShape, choice: GemmChoice, weights: WeightType
) -> None:
    check(replace(shape, weights=weights), choice)


@pytest.mark.parametrize(
    ("shape", "choice"),
    [
        (GemmShape(17, 22, 40, constant_b=True, weights="fp16"), PADDED),
        (GemmShape(64, 64, 32, constant_b=True, weights="int8"), PADDED),
        (GemmShape(37, 35, 33, trans_a=True, trans_b=True), PADDED),
        (GemmShape(5, 8, 12, batch=(2, 3), a_strides=(180, 60), b_strides=(0, 96)), SLICED),
        (GemmShape(33, 36, 200, constant_b=True), GemmChoice("tile", PADDED.tile, split=4)),
        (GemmShape(3, 50, 37, constant_b=True, trans_b=True, weights="int4"), GemmChoice("gemv")),
        (GemmShape(3, 52, 40, constant_b=True), GemmChoice("gemv")),
        (GemmShape(7, 70, 11), GemmChoice("direct", rows=4)),
        (GemmShape(7, 70, 11, trans_a=True, trans_b=True), GemmChoice("direct", rows=2)),
    ],
    ids=lambda value: value.label if isinstance(value, GemmChoice) else str(value),
)
def test_product_of_halves(check: Check, shape: GemmShape, choice: GemmChoice) -> None:
    check(replace(shape, halves=True), choice)


def test_only_a_constant_has_a_storage_type() -> None:
    with pytest.raises(ValueError, match="is no weight"):
        plan_gemm(GemmShape(2, 2, 2, weights="int8"), Epilogue(), RX580)


def test_gemv_is_offered_for_few_rows_only() -> None:
    def algorithms(shape: GemmShape) -> set[str]:
        return {choice.algorithm for choice in candidates(shape, RX580)}

    assert "gemv" in algorithms(GemmShape(4, 1000, 2048, constant_b=True))
    assert "gemv" not in algorithms(GemmShape(5, 1000, 2048, constant_b=True))
    assert "gemv" not in algorithms(GemmShape(1, 1000, 2048))


def test_strides_must_match_the_batch() -> None:
    with pytest.raises(ValueError, match="needs as many strides"):
        plan_gemm(GemmShape(2, 2, 2, batch=(3,), a_strides=(4,)), Epilogue(), RX580)


def test_only_a_constant_is_packed() -> None:
    plan = plan_gemm(GemmShape(2, 2, 2), Epilogue(), RX580)
    with pytest.raises(ValueError, match="not constant"):
        plan.pack(np.zeros((2, 2), np.float32))
