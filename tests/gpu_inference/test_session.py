"""The OpenCL session: plans, replay, memory, fallback, profile."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpu_inference
from gpu_inference import standard_models
from gpu_inference.errors import DeviceError, ModelError
from gpu_inference.opencl.session import OpenCLSession


def model_of(nodes: list[Any], outputs: dict[str, int], constants: dict[str, np.ndarray]) -> bytes:
    """A model of float input x with free dimensions [n, m]."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def test_an_elementwise_chain_is_one_launch() -> None:
    model = model_of(
        [node("Mul", "x a", "p"), node("Exp", "p", "q"), node("Add", "q b", "r"), node("Sqrt", "r", "y")],
        {"y": FLOAT},
        {"a": np.float32([0.5]), "b": np.arange(4, dtype=np.float32)},
    )
    session = OpenCLSession(model)
    x = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    y = session.run({"x": x})["y"]
    np.testing.assert_allclose(y, np.sqrt(np.exp(x * 0.5) + np.arange(4)), rtol=1e-5)
    assert session.report.launches == 1
    session.close()


@pytest.mark.parametrize(
    "wanted", [[5, 5], [-1, 5], [-1, -1], [3, -2], [0, 0, 0, 12]], ids=lambda dims: "x".join(map(str, dims))
)
def test_a_reshape_that_can_not_be_is_named(wanted: list[int]) -> None:
    shape = {"s": np.int64(wanted)}
    session = OpenCLSession(
        model_of([node("Reshape", "x s", "r"), node("Exp", "r", "y")], {"y": FLOAT}, shape)
    )
    with pytest.raises(ModelError, match=r"Reshape node 'r' .* \[3, 4\] of 12 elements can't become") as told:
        session.run({"x": np.zeros((3, 4), np.float32)})
    assert str(wanted) in str(told.value)
    session.close()


@pytest.mark.parametrize(
    ("shape", "wanted", "found"),
    [
        ((3, 4), [0, -1, 2], (3, 2, 2)),
        ((0, 4), [-1, 4], (0, 4)),
        ((1, 1), [], ()),
    ],
)
def test_reshape_keeps_zeros_and_finds_the_rest(
    shape: tuple[int, int], wanted: list[int], found: tuple[int, ...]
) -> None:
    model = model_of([node("Reshape", "x s", "y")], {"y": FLOAT}, {"s": np.array(wanted, np.int64)})
    session = OpenCLSession(model)
    assert session.run({"x": np.zeros(shape, np.float32)})["y"].shape == found
    session.close()


def test_an_intermediate_that_two_nodes_read_is_computed_once_and_right() -> None:
    model = model_of(
        [node("Exp", "x", "p"), node("Neg", "p", "a"), node("Mul", "p p", "b"), node("Add", "a b", "y")],
        {"y": FLOAT, "p": FLOAT},
        {},
    )
    session = OpenCLSession(model)
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    results = session.run({"x": x})
    np.testing.assert_allclose(results["p"], np.exp(x), rtol=1e-5)
    np.testing.assert_allclose(results["y"], np.exp(2 * x) - np.exp(x), rtol=1e-4, atol=1e-6)
    session.close()


def test_shape_arithmetic_never_reaches_the_device() -> None:
    model = model_of(
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "n", axis=0),
            node("Concat", "n minus", "t", axis=0),
            node("Reshape", "x t", "r"),
            node("Relu", "r", "y"),
        ],
        {"y": FLOAT},
        {"zero": np.int64([0]), "minus": np.int64([2, -1])},
    )
    session = OpenCLSession(model)
    assert session.run({"x": np.ones((3, 8), np.float32)})["y"].shape == (3, 2, 4)
    assert session.report.launches == 1
    session.close()


def test_a_shape_computed_on_the_device_is_read_back_and_planned_on() -> None:
    # the number of rows to keep is a sum over the input: only the device knows it
    model = model_of(
        [
            node("ReduceSum", "x", "total", keepdims=0),
            node("Cast", "total", "count", to=INT64),
            node("Unsqueeze", "count zero", "end"),
            node("Slice", "x zero end", "kept"),
            node("Neg", "kept", "y"),
        ],
        {"y": FLOAT},
        {"zero": np.int64([0])},
    )
    session = OpenCLSession(model)
    for rows in (2, 1, 2):
        x = np.zeros((4, 3), np.float32)
        x[:rows, 0] = 1
        np.testing.assert_array_equal(session.run({"x": x})["y"], -x[:rows])
    session.close()


def test_replay_repeats_the_run_on_what_was_uploaded() -> None:
    session = OpenCLSession(standard_models.resnet(blocks=(1, 1), width=8))
    x = {"x": np.random.default_rng(1).standard_normal((2, 3, 64, 64)).astype(np.float32)}
    want = session.run(x)
    session.upload(x)
    for _ in range(3):
        session.replay()
    session.finish()
    got = session.fetch()
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    session.close()


def _unknown() -> bytes:
    # Det is an operator that we don't have
    nodes = [node("Relu", "x", "a"), node("Det", "a", "d"), node("Neg", "d", "y")]
    return model_of(nodes, {"y": FLOAT}, {})


def test_an_operator_that_is_missing_runs_on_onnxruntime_and_is_announced_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = OpenCLSession(_unknown())
    x = np.float32([[2, 1], [1, 3]])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_allclose(session.run({"x": x})["y"], -5, rtol=1e-6)
    assert sum("Det node" in record.message for record in caplog.records) == 1
    assert list(session.report.fallback) == ["Det node 'd' (opset 18)"]
    session.close()


def test_a_missing_operator_without_fallback_is_refused_with_its_name() -> None:
    session = gpu_inference.load(_unknown(), fallback=False)
    with pytest.raises(ModelError, match=r"Det node 'd' \(opset 18\).*fallback=True"):
        session.run({"x": np.eye(2, dtype=np.float32)})
    session.close()


def test_too_little_memory_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    session = OpenCLSession(standard_models.resnet(blocks=(1, 1), width=8))
    monkeypatch.setattr(session._handle, "memory_bytes", 1 << 16)
    with pytest.raises(DeviceError, match=r"needs 0\.\d MiB .* the device has 0\.1 MiB"):
        session.run({"x": np.zeros((1, 3, 64, 64), np.float32)})
    monkeypatch.undo()
    assert session.run({"x": np.zeros((1, 3, 64, 64), np.float32)})
    session.close()


def test_the_arena_is_a_fraction_of_all_tensors() -> None:
    session = OpenCLSession(standard_models.mobilenet_v2(width=0.5))
    session.run({"x": np.zeros((1, 3, 64, 64), np.float32)})
    report = session.report
    session.close()
    # the two largest tensors that live at once: 48 channels of 32 x 32 and what is made of them
    assert report.arena_bytes < 3 * 48 * 32 * 32 * 4
    assert report.peak_bytes == report.arena_bytes + report.constant_bytes


def test_weights_are_uploaded_once_for_all_batches() -> None:
    session = OpenCLSession(standard_models.resnet(blocks=(1, 1), width=8))
    sizes = []
    for batch in (1, 2, 5):
        session.run({"x": np.zeros((batch, 3, 64, 64), np.float32)})
        sizes.append(session.report.constant_bytes)
    session.close()
    assert sizes[0] == sizes[1] == sizes[2]


def test_a_profile_has_a_time_for_every_launch() -> None:
    session = OpenCLSession(standard_models.resnet(blocks=(1, 1), width=8))
    x = {"x": np.zeros((1, 3, 64, 64), np.float32)}
    session.run(x)
    launches = session.report.launches
    times = session.profile(x, repeats=2)
    session.close()
    assert len(times) == launches
    assert all(t.time_us > 0 and t.node for t in times)
    assert sum(t.flops for t in times) > 1e6


def test_tuning_measures_each_problem_once_and_changes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARSTREAM_CACHE", str(tmp_path))
    model = model_of([node("MatMul", "x w", "y")], {"y": FLOAT}, {"w": np.eye(8, dtype=np.float32)})
    x = {"x": np.random.default_rng(2).random((4, 8)).astype(np.float32)}
    session = OpenCLSession(model)
    want = session.run(x)["y"]
    assert session.tune(x) == 1
    assert session.tune(x) == 0
    np.testing.assert_allclose(session.run(x)["y"], want, rtol=1e-6)
    session.close()
    assert (tmp_path / "tuning.json").is_file()


def test_relu_after_an_integer_product_keeps_integers() -> None:
    nodes = [
        node("Cast", "x", "i", to=TensorProto.INT32),
        node("MatMul", "i w", "p"),
        node("Relu", "p", "y"),
    ]
    w = np.int32([[1, -2], [3, 4]])
    session = OpenCLSession(model_of(nodes, {"y": TensorProto.INT32}, {"w": w}), fallback=False)
    x = np.float32([[-5, 2], [7, -1]])
    np.testing.assert_array_equal(session.run({"x": x})["y"], np.maximum(x.astype(np.int32) @ w, 0))
    session.close()
