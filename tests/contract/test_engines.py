"""What every engine promises, checked on each of them."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpu_inference
from gpu_inference import EngineError, ModelError, standard_models

ENGINES = ("opencl", "onnxruntime")


def _affine(width: int = 5) -> tuple[bytes, np.ndarray, np.ndarray]:
    """y = relu(x w + b) with a free batch, and its weights."""
    rng = np.random.default_rng(3)
    w = rng.standard_normal((width, 7)).astype(np.float32)
    b = rng.standard_normal(7).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["q"]),
        helper.make_node("Relu", ["q"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString(), w, b


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_agrees_with_numpy_for_one_odd_and_many_rows(engine: Any) -> None:
    model, w, b = _affine()
    session = gpu_inference.load(model, engine=engine)
    for rows in (1, 3, 17, 1024, 1):
        x = np.random.default_rng(rows).standard_normal((rows, 5)).astype(np.float32)
        kept = x.copy()
        np.testing.assert_allclose(session.run({"x": x})["y"], np.maximum(x @ w + b, 0), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(x, kept)
    session.close()


def test_says_what_goes_in_and_comes_out(engine: Any) -> None:
    session = gpu_inference.load(_affine()[0], engine=engine)
    (x,), (y,) = session.inputs, session.outputs
    assert (x.name, x.dtype, x.shape) == ("x", np.float32, (None, 5))
    assert (y.name, y.dtype, y.shape) == ("y", np.float32, (None, 7))
    session.close()


def test_results_are_the_callers_own(engine: Any) -> None:
    session = gpu_inference.load(_affine()[0], engine=engine)
    first = session.run({"x": np.ones((2, 5), np.float32)})["y"]
    kept = first.copy()
    session.run({"x": np.zeros((2, 5), np.float32)})
    session.close()
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({}, "no array for input 'x'"),
        ({"x": np.zeros((1, 5), np.float32), "z": np.zeros(1)}, "no input 'z'"),
        ({"x": np.zeros((1, 5), np.float64)}, "is float64, the model wants float32"),
        ({"x": np.zeros((1, 6), np.float32)}, r"has shape \(1, 6\)"),
        ({"x": np.zeros(5, np.float32)}, r"has shape \(5,\)"),
    ],
)
def test_refuses_wrong_inputs_and_works_on(engine: Any, inputs: Any, complaint: str) -> None:
    session = gpu_inference.load(_affine()[0], engine=engine)
    with pytest.raises(ModelError, match=complaint):
        session.run(inputs)
    assert session.run({"x": np.zeros((1, 5), np.float32)})["y"].shape == (1, 7)
    session.close()


def test_a_closed_session_says_so_and_closes_again(engine: Any) -> None:
    session = gpu_inference.load(_affine()[0], engine=engine)
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run({"x": np.zeros((1, 5), np.float32)})


def test_refuses_what_is_no_model(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model file"):
        gpu_inference.load(tmp_path / "missing.onnx", engine=engine)
    with pytest.raises(ModelError):
        gpu_inference.load(b"certainly not an ONNX model", engine=engine)


def test_reads_a_file(engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "affine.onnx"
    path.write_bytes(_affine()[0])
    session = gpu_inference.load(path, engine=engine)
    assert session.run({"x": np.zeros((2, 5), np.float32)})["y"].shape == (2, 7)
    session.close()


def test_memory_is_back_after_a_hundred_sessions(engine: Any) -> None:
    model = standard_models.resnet(blocks=(1, 1), width=32)  # 0.5 MB of weights
    x = np.zeros((2, 3, 64, 64), np.float32)

    def cycle() -> int:
        session = gpu_inference.load(model, engine=engine)
        session.run({"x": x})
        session.close()
        del session
        gc.collect()
        return int(psutil.Process().memory_info().rss)

    for _ in range(10):
        cycle()
    before = cycle()
    for _ in range(100):
        after = cycle()
    # every cycle needs 3 MB: a tenth of one leaked each time would be 30 MB
    assert after - before < 24 << 20
