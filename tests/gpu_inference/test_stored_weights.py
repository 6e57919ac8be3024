"""Whole models with weights stored as fp16, int8 and int4, and models that are float16 themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpu_inference
from gpu_inference import EngineError, standard_models
from gpu_inference.graph.importer import import_graph, read_model
from gpu_inference.graph.passes.pipeline import optimise
from gpu_inference.opencl.forecast import forecast_model, memory_of_model
from gpu_inference.opencl.session import OpenCLSession
from gpu_inference.opencl.traits import RX580
from gpu_inference.opencl.weights import WEIGHT_TYPES, WeightType, dequantised
from tests.gpu_inference import networks


def _small_network() -> bytes:
    """Convolutions of every kind, MatMul and Gemm, without norms that would change the weights."""
    net = standard_models.Network((1, 3, 20, 20))
    x = net.conv("x", 3, 16, 3, 2, norm=False)
    x = net.conv(x, 16, 16, 3, group=16, norm=False)
    x = net.conv(x, 16, 24, norm=False)
    x = net.conv(x, 24, 32, 3, norm=False)
    x = net.conv(x, 32, 32, 3, group=4, norm=False, act="Silu")
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    x = net.linear(x, 32, 21)
    return net.model(net.add("Gemm", x, net.normal(10, 21, scale=0.2), net.normal(10), transB=1, alpha=0.5))


# Of the largest output, for networks with random weights, which are harder to round than trained ones.
ERRORS: dict[WeightType, float] = {"fp16": 5e-4, "int8": 1e-2, "int4": 0.15}
NETWORKS: dict[str, tuple[Callable[[], bytes], tuple[int, ...]]] = {
    "small": (_small_network, (3, 20, 20)),
    "vit_block": (networks.vit_block, (50, 96)),
}


def _run(model: bytes, x: np.ndarray, weights: WeightType | None = None) -> tuple[np.ndarray, OpenCLSession]:
    session = OpenCLSession(model, weights=weights, fallback=False)
    result = next(iter(session.run({"x": x}).values()))
    session.close()
    return result, session


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_stay_within_the_errors_that_are_stated(name: str) -> None:
    make, shape = NETWORKS[name]
    model, x = make(), np.random.default_rng(5).standard_normal((2, *shape)).astype(np.float32)
    want, _ = _run(model, x)
    errors = {}
    for weights in WEIGHT_TYPES[1:]:
        got, _ = _run(model, x, weights)
        errors[weights] = float(np.abs(got - want).max() / np.abs(want).max())
    assert 0 < errors["fp16"] < errors["int8"] < errors["int4"]
    assert all(error <= ERRORS[weights] for weights, error in errors.items())


def _with_dequantised_weights(model: bytes, weights: WeightType) -> bytes:
    """The model with what the card would see, in float32."""
    proto = onnx.load_model_from_string(model)
    axes = {node.input[1]: int(node.op_type == "MatMul") for node in proto.graph.node if len(node.input) > 1}
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim < 2 or tensor.name not in axes:
            continue
        rows = np.ascontiguousarray(np.moveaxis(array, axes[tensor.name], 0))
        seen = np.moveaxis(dequantised(rows, weights), 0, axes[tensor.name])
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(seen), tensor.name))
    return proto.SerializeToString()


@pytest.mark.parametrize("weights", WEIGHT_TYPES[1:])
def test_a_network_computes_with_the_weights_that_it_stores(weights: WeightType) -> None:
    model, x = _small_network(), np.random.default_rng(6).standard_normal((3, 3, 20, 20)).astype(np.float32)
    reference = gpu_inference.load(_with_dequantised_weights(model, weights), engine="onnxruntime")
    want = next(iter(reference.run({"x": x}).values()))
    reference.close()
    plain, _ = _run(model, x)
    got, _ = _run(model, x, weights)
    scale = np.abs(want).max()
    assert np.abs(got - want).max() <= 2e-6 * scale
    assert np.abs(plain - want).max() > 2e-5 * scale


def test_weights_take_the_memory_that_their_type_says() -> None:
    model, x = _small_network(), np.zeros((2, 3, 20, 20), np.float32)
    held = {}
    for weights in WEIGHT_TYPES:
        session = OpenCLSession(model, weights=weights)
        foreseen = session.memory_need({"x": x}).weight_bytes
        session.run({"x": x})
        held[weights] = session.report.constant_bytes
        assert foreseen == held[weights]
        session.close()
    ratios = [held[weights] / held["fp32"] for weights in WEIGHT_TYPES]
    np.testing.assert_allclose(ratios, [1, 1 / 2, 1 / 4, 1 / 8], atol=0.04)
    on_card = [memory_of_model(model, [{"x": x}], RX580, weights).weight_bytes for weights in WEIGHT_TYPES]
    assert on_card[0] > on_card[1] > 1.8 * on_card[2] > 3 * on_card[3]


def test_a_forecast_knows_of_the_type() -> None:
    # one image through a wide fully connected layer: its weights decide
    net = standard_models.Network((1, 2048))
    model = net.model(net.linear("x", 2048, 2048))
    x = {"x": np.zeros((1, 2048), np.float32)}
    times = [forecast_model(model, [x], RX580, weights)[0].total_us for weights in WEIGHT_TYPES]
    assert times[0] > 1.5 * times[1] > 2 * times[2] > 2.5 * times[3]


def _halved(model: bytes) -> bytes:
    """The model with float16 inputs, outputs and weights, as converters write it."""
    proto = onnx.load_model_from_string(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto.SerializeToString()


@pytest.mark.parametrize("name", ["small", "vit_block"])
def test_a_half_model_runs_the_kernels_of_a_float_model(name: str) -> None:
    make, shape = NETWORKS[name]
    model, x = make(), np.random.default_rng(5).standard_normal((2, *shape)).astype(np.float16)
    want, plain = _run(model, x.astype(np.float32))
    got, half = _run(_halved(model), x)
    assert got.dtype == np.float16
    assert np.abs(got - want).max() <= 4e-3 * np.abs(want).max()
    # a cast at either end
    assert half.report.launches <= plain.report.launches + 2


def test_the_weights_of_a_half_model_stay_as_they_are() -> None:
    model = _halved(_small_network())
    x = np.random.default_rng(7).standard_normal((1, 3, 20, 20)).astype(np.float16)
    (got, _), (wide, _) = _run(model, x), _run(model, x, "fp32")
    # halves lose nothing: the same results from half the bytes (Winograd would round again)
    np.testing.assert_array_equal(got, wide)
    assert optimise(import_graph(read_model(model))).half
    assert not optimise(import_graph(read_model(_small_network()))).half


def test_a_half_model_with_casts_and_attributes_of_its_type() -> None:
    weights = np.random.default_rng(8).standard_normal((4, 4)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["p"]),
        helper.make_node("Shape", ["p"], ["s"]),
        helper.make_node(
            "ConstantOfShape", ["s"], ["one"], value=numpy_helper.from_array(np.ones(1, np.float16))
        ),
        helper.make_node("Add", ["p", "one"], ["y"]),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, [None, 4])],
        [info("y", TensorProto.FLOAT16, None), info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    x = np.random.default_rng(9).standard_normal((3, 4)).astype(np.float32)
    session = OpenCLSession(model.SerializeToString(), fallback=False)
    got = session.run({"x": x})
    session.close()
    want = x @ weights.astype(np.float32) + 1
    assert (got["y"].dtype, got["z"].dtype) == (np.float16, np.float32)
    np.testing.assert_allclose(got["z"], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["y"], want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"weights": "int2"}, "no weights of type 'int2': take fp32, fp16, int8, int4"),
        ({"weights": "int8", "engine": "onnxruntime"}, "onnxruntime can't store weights as int8"),
        ({"activations": "fp16", "engine": "onnxruntime"}, "onnxruntime can't store .* activations as fp16"),
        ({"activations": "int8"}, "no activations of type 'int8': take fp32, fp16"),
    ],
)
def test_types_that_are_not_there_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(EngineError, match=complaint):
        gpu_inference.load(_small_network(), **arguments)


def _region() -> bytes:
    """A region with a concatenation, a residual and pooling, which a tensor leaves and comes back to."""
    net = standard_models.Network((1, 3, 24, 24))
    x = net.conv("x", 3, 16, 3, 2, norm=False)
    left = net.conv(x, 16, 8, norm=False)
    right = net.conv(x, 16, 24, 3, norm=False, act=None)
    x = net.add("Concat", left, net.add("Clip", right, "", net.constant(np.float32(4))), axis=1)
    y = net.add(
        "MaxPool",
        net.conv(x, 32, 32, 3, group=32, norm=False, residual=x),
        kernel_shape=[2, 2],
        strides=[2, 2],
    )
    scale = net.add("Softmax", y, axis=1)
    y = net.add("Mul", net.conv(scale, 32, 32, norm=False), net.constant(np.float32(0.5)))
    y = net.add("Mul", y, net.constant(np.float32(1e6)))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", net.conv(x, 32, 20, norm=False)))
    z = net.add("Gemm", pooled, net.normal(10, 20, scale=0.2), net.normal(10), transB=1)
    return net.model(z, y, scale, types=(1, 1, 1))


def _outputs(model: bytes, x: np.ndarray, **arguments: Any) -> tuple[list[np.ndarray], OpenCLSession]:
    session = OpenCLSession(model, fallback=False, **arguments)
    results = list(session.run({"x": x}).values())
    session.close()
    return results, session


def test_halves_between_convolutions_change_little() -> None:
    x = np.random.default_rng(10).standard_normal((2, 3, 24, 24)).astype(np.float32)
    wanted, _ = _outputs(_region(), x)
    got, _ = _outputs(_region(), x, activations="fp16")
    for one, want in zip(got, wanted, strict=True):
        assert one.dtype == np.float32
        error = np.abs(one - want).max() / np.abs(want - want.mean()).max()
        assert 0 < error <= 3e-3


def test_halves_take_half_the_arena() -> None:
    model, x = _region(), np.ones((2, 3, 24, 24), np.float32)
    sizes = []
    for activations in ("fp32", "fp16"):
        session = OpenCLSession(model, activations=activations)
        need = session.memory_need({"x": x})
        session.run({"x": x})
        assert need.arena_bytes == session.report.arena_bytes
        sizes.append((session.report.arena_bytes, session.report.launches))
        session.close()
    (wide, launches), (narrow, more) = sizes
    # the input stands beside them, and casts at either end, before and after the softmax
    assert narrow - x.nbytes <= 0.55 * (wide - x.nbytes) + x.nbytes
    assert more <= launches + 4


def test_the_region_ends_at_what_halves_can_not_hold() -> None:
    graph = optimise(import_graph(read_model(_region())), half_activations=True)
    narrow = {node.op for node in graph.nodes if node.outputs[0].endswith(":half")}
    assert narrow >= {"Conv", "Concat", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm", "Mul", "Cast"}
    wide = {node.op for node in graph.nodes if not node.outputs[0].endswith(":half")}
    # 1e6 is no half; softmax is for float32 alone
    assert wide == {"Softmax", "Mul", "Cast"}
    plain = optimise(import_graph(read_model(_region())))
    assert not any(":half" in name for node in plain.nodes for name in node.outputs)


def test_a_half_model_may_keep_halves_between_its_convolutions() -> None:
    net = standard_models.Network((1, 3, 24, 24))
    model = _halved(net.model(net.conv(net.conv("x", 3, 16, 3, 2, norm=False), 16, 8, norm=False)))
    x = np.random.default_rng(7).standard_normal((1, 3, 24, 24)).astype(np.float16)
    (wide,), _ = _outputs(model, x)
    (narrow,), _ = _outputs(model, x, activations="fp16")
    assert narrow.dtype == np.float16
    assert np.abs(narrow.astype(np.float32) - wide).max() <= 3e-3 * np.abs(wide).max()


def test_a_forecast_knows_of_halves_between_convolutions() -> None:
    model = standard_models.mobilenet_v2(size=224)
    x = {"x": np.zeros((8, 3, 224, 224), np.float32)}
    (wide,), (narrow,) = (forecast_model(model, [x], RX580, "fp16", kind) for kind in ("fp32", "fp16"))
    assert narrow.total_us < 0.95 * wide.total_us
    assert narrow.memory.arena_bytes < 0.7 * wide.memory.arena_bytes
    assert memory_of_model(model, [x], RX580, "fp16", "fp16") == narrow.memory
