"""Pictures and a model that tests of the frames' way share: a classifier of colours, right for sure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from gpu_inference.models.folder import ModelFolder, ModelVersion

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}

MANIFEST = """
input.size = [32, 32]
output.task = "classification"
output.labels = {labels}
limits.max_batch = 8
limits.max_delay_ms = 4
"""


def colour_model() -> bytes:
    """The mean of each channel, times 20, is the logit of its colour."""
    weights = numpy_helper.from_array(20 * np.eye(3, dtype=np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "colours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return bytes(model.SerializeToString())


def add_colour_model(
    folder: Path, version: str = "1", name: str = "colours", labels: Sequence[str] = tuple(COLOURS)
) -> ModelVersion:
    """Put it into a folder of models."""
    source = folder.parent / f"{name}-{version}.onnx"
    folder.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.load_from_string(colour_model()), source)
    return ModelFolder(folder).add(name, version, source, MANIFEST.format(labels=list(labels)))


def picture(colour: str, size: tuple[int, int] = (80, 60), kind: str = "JPEG", noise: int = 0) -> bytes:
    """A file of (width, height) pixels of one colour."""
    w, h = size
    pixels = np.empty((h, w, 3), np.uint8)
    pixels[:] = COLOURS[colour]
    if noise:
        pixels ^= np.random.default_rng(noise).integers(0, 8, pixels.shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
