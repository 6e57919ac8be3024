"""Manifests held against models."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_inference import TensorInfo
from gpu_inference.errors import ManifestError
from gpu_inference.models.binding import Binding, bind
from gpu_inference.models.manifest import parse

F32 = np.dtype("float32")
SCORES = TensorInfo("scores", F32, (None, 10))


def faults_of(text: str, *inputs: TensorInfo) -> str:
    with pytest.raises(ManifestError) as caught:
        bind(parse(text), inputs, [SCORES])
    return str(caught.value)


def test_a_manifest_that_fits_says_how_the_model_is_fed() -> None:
    free = TensorInfo("x", F32, (None, 3, 224, 224))
    assert bind(parse(""), [free], [SCORES]) == Binding("x", (3, 224, 224), "float32", None, 32)
    fixed = TensorInfo("x", F32, (4, 224, 224, 3))
    bound = bind(parse('input.layout = "NHWC"'), [fixed], [SCORES])
    assert (bound.shape, bound.fixed_batch, bound.max_batch) == ((224, 224, 3), 4, 4)
    series = 'input = {kind = "series", fields = ["a", "b"], window = 9, layout = "NFW"}'
    assert bind(parse(series), [TensorInfo("s", F32, None)], [SCORES]).shape == (2, 9)
    tensor = 'input = {kind = "tensor", shape = [7], dtype = "int64"}'
    assert bind(parse(tensor), [TensorInfo("t", np.dtype("int64"), (None, None))], [SCORES]).shape == (7,)


def test_every_disagreement_is_told() -> None:
    planes = TensorInfo("x", F32, (None, 3, 64, 64))
    assert "input.size: [batch, 3, 224, 224] NCHW does not fit the model's [any, 3, 64, 64]" in faults_of(
        "", planes
    )
    assert "[batch, 64, 64, 3] NHWC does not fit" in faults_of(
        'input = {size = [64, 64], layout = "NHWC"}', planes
    )
    assert "input.name: the model has no input 'y': use x" in faults_of('input.name = "y"', planes)
    mask = TensorInfo("mask", F32, (None, 1))
    assert "the model has the inputs x, mask: choose one" in faults_of("", planes, mask)
    assert "the model also wants mask" in faults_of('input = {name = "x", size = [64, 64]}', planes, mask)
    several = faults_of(
        'input = {size = [64, 64], dtype = "float16"}\noutput.names = ["scores", "boxes"]', planes
    )
    assert several.splitlines() == [
        "input.dtype: float16 is not the model's: use 'float32'",
        "output.names[1]: the model has no output 'boxes': use scores",
    ]


@pytest.mark.parametrize(
    ("text", "shapes", "classes"),
    [
        ("", [(None, 3)], 3),
        ("", [(None, 3, 1, 1)], 3),
        ('output = {task = "classification", names = ["o1"]}', [(None, 9), (None, 3)], 3),
        ('output.task = "detection"', [(1, 7, 8400)], 3),
        ('output.task = "detection"', [(1, 8400, 7)], 3),
        ('output = {task = "detection", format = "yolo-objectness"}', [(None, 100, 8)], 3),
        ('output = {task = "detection", format = "split"}', [(None, 9, 4), (None, 9, 3)], 3),
        (
            'output = {task = "detection", format = "split", activation = "softmax"}',
            [(None, 9, 4), (None, 9, 4)],
            3,
        ),
        ('output.task = "segmentation"', [(None, 3, 8, 8)], 3),
        ('output = {task = "segmentation", layout = "NHWC"}', [(None, 8, 8, 3)], 3),
        ('output.task = "segmentation"', [(None, 1, 8, 8)], None),
        ('output.task = "segmentation"', [(None, 8, 8)], None),
        ('output.task = "detection"', [(1, 7, None)], None),
        ('output = {task = "detection", format = "rows"}', [(1, 100, 6)], None),
        ("", [(None, None)], None),
        ("", [None], None),
    ],
)
def test_labels_are_counted_where_the_model_says_how_many_classes_it_has(
    text: str, shapes: list[tuple[int | None, ...] | None], classes: int | None
) -> None:
    image = TensorInfo("x", F32, (None, 3, 224, 224))
    outputs = [TensorInfo(f"o{i}", F32, shape) for i, shape in enumerate(shapes)]
    bind(parse(text), [image], outputs, ("a", "b", "c"))
    bind(parse(text), [image], outputs)
    if classes is None:
        bind(parse(text), [image], outputs, ("a", "b"))
    else:
        with pytest.raises(ManifestError, match=r"output\.labels: there are 2 for 3 classes"):
            bind(parse(text), [image], outputs, ("a", "b"))
