"""Tensors and windows of requests, and outputs that are answered as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import Raw, SeriesInput, TensorInput
from gpu_inference.tasks.numbers import SeriesPreprocessor, TensorPreprocessor
from gpu_inference.tasks.raw import RawTask, unpack
from gpu_inference.tasks.windows import Windows


@pytest.mark.parametrize("layout", ["NWF", "NFW"])
def test_a_window_of_a_request_is_what_a_stream_of_the_same_readings_gives(layout: Any) -> None:
    config = SeriesInput(fields=("a", "b"), window=4, layout=layout, mean=(1.0, -2.0), std=(2.0, 0.5))
    values = np.random.default_rng(3).normal(size=(4, 2))
    windows = Windows(config)
    state = np.zeros(1, windows.dtype)
    _, (wanted,) = windows.push(state, np.zeros(4, np.int32), values)
    prepare = SeriesPreprocessor(config)
    rows = values.tolist()
    for readings in (rows, [{"a": a, "b": b, "else": None} for a, b in rows], [[9.0, 9.0], *rows]):
        slot = np.empty(windows.shape, np.float32)
        prepare.fill(prepare.fit(readings), slot)
        np.testing.assert_allclose(slot, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "readings",
    [[], [[1.0, 2.0]], [[1.0, 2.0], [1.0]], [[1.0, 2.0], {"a": 1.0}], [[1.0, None], [1.0, 2.0]], 2 * ["xy"]],
)
def test_a_window_that_lacks_a_number_is_refused(readings: list[Any]) -> None:
    with pytest.raises(ModelError, match="send"):
        SeriesPreprocessor(SeriesInput(fields=("a", "b"), window=2)).fit(readings)


def test_a_tensor_must_have_the_shape_and_type_of_the_model() -> None:
    prepare = TensorPreprocessor(TensorInput(shape=(2, 3), dtype="float32"))
    right = np.arange(6, dtype=np.float32).reshape(2, 3)
    slot = np.empty((2, 3), np.float32)
    for array in (right, right[None]):
        prepare.fill(prepare.fit(array), slot)
        np.testing.assert_array_equal(slot, right)
    for wrong in (right.T, right.astype(np.float64), right[:1], np.stack([right, right])):
        with pytest.raises(ModelError, match=r"send float32 \[2, 3\]"):
            prepare.fit(wrong)


def test_raw_outputs_come_back_as_they_were() -> None:
    outputs = {
        "y": np.random.default_rng(0).normal(size=(3, 2, 2)).astype(np.float16),
        "n": np.array([1, -2, 3], ">i8"),
    }
    answers = RawTask(Raw()).answers(outputs, 2)
    assert len(answers) == 2
    for row, answer in enumerate(answers):
        assert list(answer["outputs"]) == ["y", "n"]
        for name, array in outputs.items():
            back = unpack(answer["outputs"][name])
            assert back.dtype == array.dtype.newbyteorder("=")
            np.testing.assert_array_equal(back, array[row])
    assert list(RawTask(Raw(names=("n",))).answers(outputs, 2)[0]["outputs"]) == ["n"]
