from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpu_inference.opencl.conv import ConvChoice, ConvShape, Pitches, candidates, plan_conv
from gpu_inference.opencl.epilogue import Epilogue, relu
from gpu_inference.opencl.launch import Buf
from gpu_inference.opencl.oracle import convolution
from gpu_inference.opencl.tile import Tile
from gpu_inference.opencl.timing import LaunchTimer
from gpu_inference.opencl.traits import RX580

SAME3 = ConvShape(2, 9, 7, 6, 10, 3, 3, 1, 1, 1, 1, 1, 1)
POINTWISE = ConvShape(1, 8, 9, 20, 36)
ODD = ConvShape(1, 10, 11, 8, 8, 3, 5, 2, 1, 0, 2, 1, 1, 1, 2)
GROUPS = ConvShape(1, 7, 7, 16, 32, 3, 3, 1, 1, 1, 1, 1, 1, groups=2)
WIDE = ConvShape(1, 5, 5, 260, 12, 3, 3, 1, 1, 1, 1, 1, 1)
PADDED = Tile(32, 32, 16, 4, 4, unroll=4)
SLICED = Tile(32, 32, 32, 4, 4, ks=4, swizzle=True)


def shape_id(value: Any) -> str | None:
    if isinstance(value, ConvShape):
        s = value
        return f"{s.n}x{s.h}x{s.w}x{s.c}-{s.o}k{s.kh}x{s.kw}s{s.sh}g{s.groups}"
    return value.label if isinstance(value, ConvChoice | Tile) else None


@pytest.mark.parametrize("shape", [SAME3, POINTWISE, ODD, GROUPS, WIDE], ids=shape_id)
@pytest.mark.parametrize("tile", [PADDED, SLICED], ids=shape_id)
def test_tiled_convolution_agrees_with_numpy(check_conv: Any, shape: ConvShape, tile: Tile) -> None:
    check_conv(shape, ConvChoice("tile", tile=tile))


@pytest.mark.parametrize("shape", [SAME3, POINTWISE, GROUPS, WIDE], ids=shape_id)
def test_split_inner_dimension_adds_up(check_conv: Any, shape: ConvShape) -> None:
    check_conv(shape, ConvChoice("tile", tile=PADDED, split=2), epilogue=relu(residual="before"))


@pytest.mark.parametrize(
    "shape",
    [POINTWISE, ConvShape(2, 9, 11, 36, 20), ConvShape(1, 3, 3, 5, 3), ConvShape(1, 12, 12, 72, 68)],
    ids=shape_id,
)
@pytest.mark.parametrize(("px", "vector"), [(1, 16), (1, 32), (2, 16), (4, 16)])
def test_wave_uniform_weights(check_conv: Any, shape: ConvShape, px: int, vector: int) -> None:
    choice = ConvChoice("uniform", px=px, vector=vector)
    check_conv(shape, choice, epilogue=relu(residual="before"), device=RX580)


@pytest.mark.parametrize("split", [2, 3])
def test_wave_uniform_weights_with_a_split_inner_dimension(check_conv: Any, split: int) -> None:
    shape = ConvShape(1, 5, 5, 140, 24)
    choice = ConvChoice("uniform", split=split, vector=16)
    check_conv(shape, choice, epilogue=relu(residual="before"), device=RX580)


def test_only_plain_1x1_convolutions_are_offered_uniform_weights() -> None:
    def offered(shape: ConvShape) -> bool:
        return any(choice.algorithm == "uniform" for choice in candidates(shape, RX580))

    assert offered(POINTWISE)
    assert not offered(replace(POINTWISE, sh=2, sw=2))
    assert not offered(replace(POINTWISE, pt=1))
    assert not offered(replace(POINTWISE, groups=4))
    assert not offered(SAME3)


def test_tile_larger_than_the_result(check_conv: Any) -> None:
    check_conv(ConvShape(1, 1, 1, 4, 1), ConvChoice("tile", tile=PADDED))


def test_shares_of_eight_by_eight(check_conv: Any) -> None:
    shape = ConvShape(1, 12, 12, 16, 68, 3, 3, 1, 1, 1, 1, 1, 1)
    check_conv(shape, ConvChoice("tile", tile=Tile(128, 64, 8, 8, 8, unroll=1)))


@pytest.mark.parametrize("crop", [-1, -2])
def test_negative_padding_crops(check_conv: Any, crop: int) -> None:
    shape = ConvShape(1, 9, 9, 8, 8, 3, 3, 1, 1, crop, 0, 0, crop)
    check_conv(shape, ConvChoice("tile", tile=PADDED))
    check_conv(shape, ConvChoice("direct", px=4), device=RX580)


@pytest.mark.parametrize(
    "shape",
    [SAME3, ODD, GROUPS, ConvShape(1, 7, 7, 6, 9, 3, 3, 1, 1, 1, 1, 1, 1, groups=3), WIDE],
    ids=shape_id,
)
@pytest.mark.parametrize("choice", [ConvChoice("direct", px=4, vector=16), ConvChoice("direct", px=1)])
def test_convolution_from_registers(
    check_conv: Any, timer: LaunchTimer, shape: ConvShape, choice: ConvChoice
) -> None:
    check_conv(shape, choice, device=timer.traits if choice.vector == 16 else RX580)


def test_one_dimensional_convolution(check_conv: Any) -> None:
    shape = ConvShape(2, 1, 31, 5, 7, 1, 4, 1, 2, 0, 1, 0, 2)
    check_conv(shape, None)
    check_conv(shape, ConvChoice("tile", tile=PADDED))


@pytest.mark.parametrize(
    "shape",
    [
        ConvShape(2, 15, 14, 3, 20, 7, 7, 2, 2, 3, 3, 3, 3, nchw=True),
        ConvShape(1, 15, 14, 1, 8, 3, 3, 2, 2, 0, 0, 1, 1, 2, 2, nchw=True),
    ],
    ids=shape_id,
)
def test_first_layer_reads_nchw(check_conv: Any, shape: ConvShape) -> None:
    check_conv(shape, ConvChoice("stem", tile=replace(PADDED, bk=32)))
    check_conv(shape, ConvChoice("stem", tile=SLICED))
    check_conv(shape, None)


@pytest.mark.parametrize("out", [2, 4])
@pytest.mark.parametrize("vector", [1, 2, 4])
def test_winograd_agrees_with_the_direct_sum(check_conv: Any, out: int, vector: int) -> None:
    shape = ConvShape(2, 9, 10, 16, 20, 3, 3, 1, 1, 1, 1, 1, 1)
    choice = ConvChoice("winograd2" if out == 2 else "winograd4", tile=PADDED, vector=vector)
    check_conv(shape, choice, epilogue=relu(residual="before"), tolerance=1e-5)


@pytest.mark.parametrize("out", [2, 4])
def test_winograd_without_padding_and_more_channels_than_a_step(check_conv: Any, out: int) -> None:
    shape = ConvShape(1, 8, 7, 72, 16, 3, 3)
    choice = ConvChoice("winograd2" if out == 2 else "winograd4", tile=PADDED, vector=1)
    check_conv(shape, choice, tolerance=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        ConvShape(2, 9, 7, 8, 8, 3, 3, 1, 1, 1, 1, 1, 1, groups=8),
        ConvShape(2, 9, 9, 6, 6, 3, 3, 2, 2, 0, 0, 1, 1, groups=6),
        ConvShape(1, 9, 9, 32, 32, 5, 5, 1, 1, 2, 2, 2, 2, groups=32),
        ConvShape(1, 9, 9, 12, 12, 3, 3, 1, 1, 2, 2, 2, 2, 2, 2, groups=12),
    ],
    ids=shape_id,
)
def test_depthwise(check_conv: Any, timer: LaunchTimer, shape: ConvShape) -> None:
    for device in (timer.traits, RX580):
        for choice in candidates(shape, device)[::2]:
            assert choice.algorithm == "depthwise"
            check_conv(shape, choice, device=device, epilogue=relu(6.0))


def test_depthwise_with_a_multiplier(check_conv: Any) -> None:
    check_conv(ConvShape(1, 6, 6, 4, 8, 3, 3, 1, 1, 1, 1, 1, 1, groups=4), None)


EPILOGUES = [
    Epilogue(),
    relu(residual="before"),
    Epilogue(bias=True, residual="after", activation="silu"),
    Epilogue(bias=True, activation="leaky_relu", p0=0.1),
    Epilogue(activation="sigmoid"),
    Epilogue(bias=True, activation="hardswish"),
    Epilogue(bias=True, activation="hard_sigmoid", p0=0.2, p1=0.5),
    Epilogue(bias=True, activation="tanh"),
    Epilogue(bias=True, activation="elu", p0=0.7),
    Epilogue(bias=True, activation="clip", p0=-0.5, p1=0.25),
]


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda e: f"{e.activation}-{e.residual}")
def test_every_epilogue(check_conv: Any, epilogue: Epilogue) -> None:
    check_conv(POINTWISE, ConvChoice("tile", tile=PADDED), epilogue=epilogue)


def test_epilogue_after_split_and_winograd(check_conv: Any) -> None:
    epilogue = Epilogue(bias=True, residual="after", activation="silu")
    check_conv(WIDE, ConvChoice("tile", tile=PADDED, split=3), epilogue=epilogue)
    shape = ConvShape(1, 6, 6, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1)
    check_conv(shape, ConvChoice("winograd4", tile=PADDED, vector=1), epilogue=epilogue, tolerance=1e-5)


@pytest.mark.parametrize("residual", ["before", "after"])
@pytest.mark.parametrize(
    "choice",
    [
        ConvChoice("tile", tile=PADDED),
        ConvChoice("tile", tile=SLICED),
        ConvChoice("tile", tile=PADDED, split=2),
        ConvChoice("winograd2", tile=PADDED, vector=1),
        ConvChoice("winograd4", tile=PADDED, vector=4),
        ConvChoice("direct", px=4),
        ConvChoice("depthwise", px=2, py=2),
        ConvChoice("uniform", px=2, vector=16),
    ],
    ids=shape_id,
)
def test_the_result_may_overwrite_the_residual(check_conv: Any, choice: ConvChoice, residual: Any) -> None:
    groups = 24 if choice.algorithm == "depthwise" else 1
    shape = ConvShape(2, 9, 7, 24, 24, 3, 3, 1, 1, 1, 1, 1, 1, groups=groups)
    if choice.algorithm == "uniform":
        shape = ConvShape(2, 9, 7, 24, 24)
    epilogue = Epilogue(bias=True, residual=residual, activation="silu")
    check_conv(shape, choice, epilogue=epilogue, device=RX580, tolerance=1e-5, over_residual=True)


@pytest.mark.parametrize(
    "choice",
    [
        ConvChoice("tile", tile=PADDED),
        ConvChoice("tile", tile=PADDED, split=2),
        ConvChoice("winograd2", tile=PADDED, vector=1),
        ConvChoice("direct", px=2),
    ],
    ids=shape_id,
)
def test_slices_of_wider_tensors(check_conv: Any, choice: ConvChoice) -> None:
    shape = ConvShape(1, 6, 5, 20, 24, 3, 3, 1, 1, 1, 1, 1, 1)
    at = Pitches(x=32, x_offset=8, y=40, y_offset=12, residual=28, residual_offset=4)
    check_conv(shape, choice, epilogue=relu(residual="before"), pitches=at, device=RX580, tolerance=1e-5)


@pytest.mark.parametrize("split", [1, 2])
def test_uniform_slices_of_wider_tensors(check_conv: Any, split: int) -> None:
    at = Pitches(x=64, x_offset=8, y=40, y_offset=12, residual=28, residual_offset=4)
    choice = ConvChoice("uniform", split=split, px=2, vector=16)
    shape = ConvShape(1, 6, 5, 40, 24)
    check_conv(shape, choice, epilogue=relu(residual="after"), pitches=at, device=RX580)


def test_depthwise_slices_of_wider_tensors(check_conv: Any) -> None:
    shape = ConvShape(1, 6, 5, 8, 8, 3, 3, 1, 1, 1, 1, 1, 1, groups=8)
    check_conv(shape, None, pitches=Pitches(x=24, x_offset=4, y=16, y_offset=8), device=RX580)


def test_whatever_the_models_choose_is_right(check_conv: Any, timer: LaunchTimer) -> None:
    for shape in (SAME3, POINTWISE, ODD, GROUPS, WIDE):
        check_conv(shape, None, tolerance=1e-5)
        check_conv(shape, None, device=RX580, tolerance=1e-5)


def test_oracle_agrees_with_onnxruntime() -> None:
    onnx: Any = pytest.importorskip("onnx", reason="no onnx: pip install onnx")
    ort: Any = pytest.importorskip("onnxruntime", reason="no onnxruntime: pip install onnxruntime")
    rng = np.random.default_rng(1)
    for s in (SAME3, ODD, GROUPS):
        x = rng.standard_normal((s.n, s.c, s.h, s.w), np.float32)
        w = rng.standard_normal((s.o, s.cg, s.kh, s.kw), np.float32)
        node = onnx.helper.make_node(
            "Conv",
            ["x", "w"],
            ["y"],
            strides=[s.sh, s.sw],
            pads=[s.pt, s.pl, s.pb, s.pr],
            dilations=[s.dh, s.dw],
            group=s.groups,
        )
        info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            [node], "g", [info("x", kind, x.shape), info("w", kind, w.shape)], [info("y", kind, None)]
        )
        opset = [onnx.helper.make_opsetid("", 17)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        want = session.run(None, {"x": x, "w": w})[0].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(convolution(x, w, s), want, atol=2e-4)


def test_missing_workspace_is_named() -> None:
    plan = plan_conv(WIDE, Epilogue(), RX580, ConvChoice("tile", tile=PADDED, split=2))
    with pytest.raises(ValueError, match="needs a workspace of 2400 bytes"):
        plan.launches(Buf("x"), Buf("w"), None, None, Buf("y"))


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="groups 3 don't divide channels 4 -> 6"):
        plan_conv(ConvShape(1, 4, 4, 4, 6, groups=3), Epilogue(), RX580)
