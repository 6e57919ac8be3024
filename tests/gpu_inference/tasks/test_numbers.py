"""Embeddings, regressions and series: numbers that stay what the model gave."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import Embedding, Regression, Series, SeriesInput, parse
from gpu_inference.tasks.embedding import EmbeddingTask
from gpu_inference.tasks.regression import RegressionTask
from gpu_inference.tasks.series import SeriesTask
from gpu_inference.tasks.task import task_of

POINTS = np.array([[3, 4], [0, 0], [np.nan, 1], [-1e30, 1e30]], np.float32)


def test_embeddings_have_length_one() -> None:
    answers = EmbeddingTask(Embedding()).answers({"e": POINTS}, 4)
    assert answers[0] == {"embedding": [0.6, 0.8], "dimensions": 2}
    assert answers[1] == {"embedding": [0.0, 0.0], "dimensions": 2}
    assert answers[2] == {"error": "not_finite"}
    assert answers[3]["embedding"] == [-0.707107, 0.707107]
    json.dumps(answers, allow_nan=False)


@pytest.mark.parametrize(("encoding", "dtype"), [("float16", "<f2"), ("float32", "<f4")])
def test_embeddings_as_base64_are_little_endian_numbers(encoding: str, dtype: str) -> None:
    config = Embedding(encoding=encoding, unit_norm=False)  # type: ignore[arg-type]
    answers = EmbeddingTask(config).answers({"e": POINTS}, 4)
    assert answers[0]["encoding"] == encoding
    decoded = np.frombuffer(base64.b64decode(answers[0]["embedding"]), dtype)
    np.testing.assert_array_equal(decoded, [3, 4])
    assert ("error" in answers[3]) == (encoding == "float16")  # 1e30 has no place there


def test_regressions_have_names_units_and_scale() -> None:
    config = Regression(values=("hours", "load"), units=("h", ""), scale=(100.0, 1.0), offset=(0.5, 0.0))
    answers = RegressionTask(config).answers({"y": np.array([[1.23456789, 2], [np.inf, 1]])}, 2)
    assert answers == [
        {"values": {"hours": 123.957, "load": 2.0}, "units": {"hours": "h"}},
        {"error": "not_finite"},
    ]


def test_regressions_may_come_in_several_outputs_or_in_one_column() -> None:
    outputs = {"a": np.array([[1.0], [2.0]]), "unused": np.zeros((2, 9)), "b": np.array([3.0, 4.0])}
    config = Regression(names=("b", "a"), values=("b", "a"))
    assert RegressionTask(config).answers(outputs, 2)[1] == {"values": {"b": 4.0, "a": 2.0}}
    assert RegressionTask(Regression()).answers({"y": np.array([5.0])}, 1) == [{"values": {"value_0": 5.0}}]
    with pytest.raises(ModelError, match=r"gives 9 values, not 2: set output\.values"):
        RegressionTask(Regression(names=("unused",), values=("a", "b"))).answers(outputs, 2)


def test_series_are_told_by_field_in_their_units() -> None:
    source = SeriesInput(fields=("t", "p"), window=4, mean=(10.0, 1000.0), std=(2.0, 10.0))
    raw = np.array([[[0, 1], [1, 2]], [[0, np.nan], [0, 0]]], np.float32)
    answers = SeriesTask(Series(normalised=True), source).answers({"y": raw}, 2)
    assert answers == [{"forecast": {"t": [10.0, 12.0], "p": [1010.0, 1020.0]}}, {"error": "not_finite"}]
    one = SeriesTask(Series(fields=("p",), normalised=True), source)
    assert one.answers({"y": np.array([[0.0, 1.0, 2.0]])}, 1) == [
        {"forecast": {"p": [1000.0, 1010.0, 1020.0]}}
    ]
    with pytest.raises(ModelError, match=r"is no series \[n, steps, 1\]"):
        one.answers({"y": raw}, 2)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "ClassificationTask"),
        ('output.task = "detection"', "DetectionTask"),
        ('output.task = "segmentation"', "SegmentationTask"),
        ('output.task = "embedding"', "EmbeddingTask"),
        ('output.task = "regression"', "RegressionTask"),
        ('input = {kind = "series", fields = ["a"], window = 3}\noutput.task = "series"', "SeriesTask"),
        ('input = {kind = "series", fields = ["a"], window = 3}', "ClassificationTask"),
    ],
)
def test_every_task_of_a_manifest_is_made(text: str, name: str) -> None:
    assert type(task_of(parse(text))).__name__ == name
