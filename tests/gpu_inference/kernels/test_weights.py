"""Weights as the card stores them: packed right, rounded well, and read right by every convolution kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpu_inference import ModelError
from gpu_inference.opencl.conv import ConvChoice, ConvShape, Pitches, candidates, plan_conv
from gpu_inference.opencl.epilogue import Epilogue, relu
from gpu_inference.opencl.gemm import GemmShape
from gpu_inference.opencl.timing import LaunchTimer
from gpu_inference.opencl.traits import RX580
from gpu_inference.opencl.tuner import conv_problem, gemm_problem
from gpu_inference.opencl.weights import WEIGHT_TYPES, WeightType, dequantised, quantise, store
from tests.gpu_inference.kernels.test_convolution import GROUPS, PADDED, POINTWISE, SAME3, SLICED, shape_id

STORED = WEIGHT_TYPES[1:]
TILED = ConvChoice("tile", tile=PADDED)
STEM = ConvShape(2, 15, 14, 3, 20, 7, 7, 2, 2, 3, 3, 3, 3, nchw=True)
THIRDS = ConvShape(1, 7, 7, 6, 9, 3, 3, 1, 1, 1, 1, 1, 1, groups=3)
DEPTHWISE = ConvShape(2, 9, 7, 32, 32, 3, 3, 1, 1, 1, 1, 1, 1, groups=32)
WINOGRAD = ConvShape(2, 9, 10, 16, 20, 3, 3, 1, 1, 1, 1, 1, 1)


# every kernel with int8, and with the other types those whose loads differ: the macro is the same
@pytest.mark.parametrize(
    ("weights", "shape", "choice"),
    [
        ("int8", SAME3, TILED),
        ("int8", POINTWISE, ConvChoice("tile", tile=SLICED)),
        ("int8", GROUPS, replace(TILED, split=2)),
        ("int8", STEM, ConvChoice("stem", tile=SLICED)),
        ("int8", THIRDS, ConvChoice("direct", px=2, vector=4)),
        ("int8", DEPTHWISE, ConvChoice("depthwise", px=2, py=2, vector=4)),
        ("int8", POINTWISE, ConvChoice("uniform", px=2, vector=16)),
        ("int8", replace(POINTWISE, c=140), ConvChoice("uniform", split=2, vector=16)),
        ("fp16", SAME3, TILED),
        ("int4", SAME3, TILED),
        ("fp16", THIRDS, ConvChoice("direct", px=2, vector=4)),
        ("int4", THIRDS, ConvChoice("direct", px=2, vector=4)),
        ("int4", DEPTHWISE, ConvChoice("depthwise", px=2, py=2, vector=4)),
    ],
)
def test_every_kernel_reads_stored_weights(
    check_conv: Any, shape: ConvShape, choice: ConvChoice, weights: WeightType
) -> None:
    check_conv(replace(shape, weights=weights), choice, epilogue=relu(residual="before"), device=RX580)


@pytest.mark.parametrize(
    ("shape", "choice"),
    [
        (SAME3, TILED),
        (POINTWISE, ConvChoice("tile", tile=SLICED)),
        (GROUPS, replace(TILED, split=2)),
        (STEM, ConvChoice("stem", tile=SLICED)),
        (THIRDS, ConvChoice("direct", px=2, vector=4)),
        (STEM, ConvChoice("direct", px=4, vector=4)),
        (DEPTHWISE, ConvChoice("depthwise", px=2, py=2, vector=4)),
        (POINTWISE, ConvChoice("uniform", px=2, vector=16)),
        (replace(POINTWISE, c=140), ConvChoice("uniform", split=2, vector=16)),
        *((WINOGRAD, ConvChoice("winograd2", tile=PADDED, vector=vector)) for vector in (1, 2, 4)),
    ],
    ids=shape_id,
)
def test_every_kernel_reads_and_writes_halves(check_conv: Any, shape: ConvShape, choice: ConvChoice) -> None:
    halves = replace(shape, halves=True, weights="fp32" if choice.algorithm == "winograd2" else "fp16")
    check_conv(halves, choice, epilogue=relu(residual="after"), device=RX580)


@pytest.mark.parametrize("shape", [SAME3, STEM, DEPTHWISE], ids=shape_id)
def test_the_kernels_of_this_device_read_and_write_halves(check_conv: Any, shape: ConvShape) -> None:
    check_conv(replace(shape, halves=True), None, epilogue=relu(residual="before"))


def test_slices_of_wider_tensors_of_halves(check_conv: Any) -> None:
    at = Pitches(x=32, x_offset=8, y=40, y_offset=12, residual=28, residual_offset=4)
    shape = ConvShape(1, 6, 5, 20, 24, 3, 3, 1, 1, 1, 1, 1, 1, halves=True)
    for choice in (TILED, replace(TILED, split=2), ConvChoice("winograd2", tile=PADDED, vector=1)):
        check_conv(shape, choice, epilogue=relu(residual="before"), pitches=at, device=RX580)


@pytest.mark.parametrize("weights", STORED)
@pytest.mark.parametrize("shape", [SAME3, DEPTHWISE], ids=shape_id)
def test_the_kernels_of_this_device_read_stored_weights(
    check_conv: Any, shape: ConvShape, weights: WeightType
) -> None:
    check_conv(replace(shape, weights=weights), None, epilogue=Epilogue(bias=True, activation="silu"))


def test_winograd_stores_transformed_filters_as_halves(check_conv: Any) -> None:
    choice = ConvChoice("winograd2", tile=PADDED, vector=1)
    # the transformed filters are rounded, not the filters: as far off as halves are, and no further
    check_conv(replace(WINOGRAD, weights="fp16"), choice, tolerance=1e-3)


def test_winograd_is_offered_what_its_transform_does_not_blow_up() -> None:
    def offered(weights: WeightType) -> set[str]:
        choices = candidates(replace(WINOGRAD, weights=weights), RX580)
        return {choice.algorithm for choice in choices} & {"winograd2", "winograd4"}

    assert offered("fp32") == {"winograd2", "winograd4"}
    assert offered("fp16") == {"winograd2"}
    assert not offered("int8") | offered("int4")


def test_slices_of_wider_tensors(check_conv: Any) -> None:
    at = Pitches(x=32, x_offset=8, y=40, y_offset=12, residual=28, residual_offset=4)
    shape = ConvShape(1, 6, 5, 20, 24, 3, 3, 1, 1, 1, 1, 1, 1, weights="int8")
    check_conv(shape, TILED, epilogue=relu(residual="before"), pitches=at, device=RX580)


def _decoded(packed: np.ndarray, kind: WeightType, rows: int, columns: int) -> np.ndarray:
    """What `store` wrote, read weight by weight."""
    scales = packed[: -(-rows // 16) * 64].view(np.float32)
    body, found = packed[-(-rows // 16) * 64 :], np.empty((rows, columns), np.float32)
    for row in range(rows):
        for column in range(columns):
            at = row * columns + column
            if kind == "int8":
                integer = int(body[at]) - 128
            else:
                # x z y w from the lowest nibble of two bytes
                quad = int(body[at // 4 * 2]) | int(body[at // 4 * 2 + 1]) << 8
                integer = (quad >> 4 * (0, 2, 1, 3)[at % 4] & 15) - 8
            found[row, column] = integer * scales[row]
    return found


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_packed_integers_are_the_weights_within_their_step(kind: WeightType) -> None:
    weights = np.random.default_rng(1).standard_normal((5, 24)).astype(np.float32)
    found = _decoded(store(weights, kind, lambda w: w.reshape(-1)), kind, 5, 24)
    np.testing.assert_array_equal(found, dequantised(weights, kind))
    levels = 127 if kind == "int8" else 7
    steps = np.abs(weights).max(axis=1, keepdims=True) / levels
    inside = np.abs(weights) <= 0.45 * np.abs(weights).max(axis=1, keepdims=True)
    # the nearest integer is half a step off at most, its neighbour a whole one
    assert (np.abs(found - weights) <= steps * 1.001)[inside].all()
    if kind == "int8":
        assert (np.abs(found - weights) <= steps * 1.001).all()


def test_packed_bytes_are_what_the_type_says() -> None:
    weights = np.ones((32, 64), np.float32)
    sizes = {kind: store(weights, kind, lambda w: w.reshape(-1)).nbytes for kind in WEIGHT_TYPES}
    scales = 4 * 32
    assert sizes == {"fp32": 8192, "fp16": 4096, "int8": 2048 + scales, "int4": 1024 + scales}


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rounding_keeps_the_sum_of_each_channel(kind: WeightType) -> None:
    # all a little above an integer: the nearest ones would lose a third of a step each
    weights = (np.random.default_rng(2).integers(-3, 4, (6, 90)) + 0.33).astype(np.float32)
    weights[:, 0] = 7.0
    integers, scales = quantise(weights, kind)
    off = (integers * scales[:, None]).sum(axis=1) - weights.sum(axis=1)
    assert (np.abs(off) <= 0.51 * scales).all()


def test_equal_weights_keep_their_value_and_zeros_stay_zero() -> None:
    weights = np.float32([[0.3] * 8, [0.0] * 8, [-2.0] * 8])
    for kind in ("int8", "int4"):
        found = dequantised(weights, kind)
        np.testing.assert_allclose(found.sum(axis=1), weights.sum(axis=1), rtol=1e-6)
        assert not found[1].any()


def test_four_bits_clip_an_outlier_for_the_sake_of_the_others() -> None:
    weights = np.random.default_rng(4).standard_normal((1, 400)).astype(np.float32)
    plain = np.rint(weights * 7 / np.abs(weights).max()) * np.abs(weights).max() / 7
    error, wholly = np.square(dequantised(weights, "int4") - weights), np.square(plain - weights)
    assert error.sum() < 0.9 * wholly.sum()


def test_halves_do_not_overflow() -> None:
    assert np.isfinite(dequantised(np.float32([[1e6, -1e6]]), "fp16")).all()
    assert np.isfinite(store(np.float32([[1e6, -1e6, 0, 0]]), "fp16", lambda w: w.reshape(-1))).all()


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ModelError, match="can't be stored as int8: load with weights='fp32'"):
        quantise(np.float32([[1, np.nan]]), "int8")


def test_types_are_tuned_and_priced_apart() -> None:
    shapes = [replace(POINTWISE, weights=weights) for weights in WEIGHT_TYPES]
    assert len({conv_problem(shape, relu(), RX580).key for shape in shapes}) == 4
    # one row times 64 MiB of weights: memory decides, so smaller ones are predicted to be faster
    products = [GemmShape(1, 4096, 4096, constant_b=True, weights=weights) for weights in WEIGHT_TYPES]
    problems = [gemm_problem(shape, Epilogue(), RX580) for shape in products]
    assert len({problem.key for problem in problems}) == 4
    best = [problem.predicted[0][1] for problem in problems]
    assert best[0] > 1.5 * best[1] > 2 * best[2] > 2.5 * best[3]


def test_packing_has_the_size_that_memory_is_planned_for(timer: LaunchTimer) -> None:
    weights = np.ones((64, 64, 3, 3), np.float32)
    shape = ConvShape(1, 8, 8, 64, 64, 3, 3, 1, 1, 1, 1, 1, 1)
    sizes = [
        plan_conv(replace(shape, weights=kind), relu(), timer.traits).pack(weights).nbytes
        for kind in WEIGHT_TYPES
    ]
    assert sizes == [147456, 73728, 36864 + 256, 18432 + 256]
