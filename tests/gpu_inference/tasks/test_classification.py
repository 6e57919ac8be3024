"""Classes with their scores, against sorting by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import Classification
from gpu_inference.tasks.classification import ClassificationTask

LABELS = tuple(f"c{i}" for i in range(50))


def by_hand(logits: list[float], k: int) -> list[tuple[int, float]]:
    """Softmax and the k best, one number at a time."""
    most = max(logits)
    powers = [math.exp(x - most) for x in logits]
    scores = [p / sum(powers) for p in powers]
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return [(i, scores[i]) for i in ranked[:k]]


@pytest.mark.parametrize("classes", [2, 7, 50])
def test_the_best_classes_are_those_of_a_sort(classes: int) -> None:
    logits = np.random.default_rng(classes).normal(0, 3, (6, classes)).astype(np.float32)
    task = ClassificationTask(Classification(top_k=5), LABELS)
    answers = task.answers({"scores": logits}, 6)
    for row, answer in zip(logits.tolist(), answers, strict=True):
        wanted = by_hand(row, 5)
        assert [one["class"] for one in answer["top"]] == [i for i, _ in wanted]
        assert [one["label"] for one in answer["top"]] == [f"c{i}" for i, _ in wanted]
        assert [one["score"] for one in answer["top"]] == pytest.approx([s for _, s in wanted], abs=6e-5)
        assert (answer["label"], answer["score"]) == (answer["top"][0]["label"], answer["top"][0]["score"])
    json.dumps(answers, allow_nan=False)


def test_a_batch_answers_as_one_by_one_and_padding_is_left_out() -> None:
    logits = np.random.default_rng(1).normal(0, 3, (8, 40)).astype(np.float32)
    task = ClassificationTask(Classification(), LABELS)
    batch = task.answers({"scores": logits}, 5)
    assert batch == [task.answers({"scores": logits[i : i + 1]}, 1)[0] for i in range(5)]


def test_scores_that_are_probabilities_stay() -> None:
    scores = np.array([[0.1, 0.7, 0.2]], np.float32)
    (answer,) = ClassificationTask(Classification(activation="none", top_k=2), ()).answers({"p": scores}, 1)
    assert answer == {
        "label": "1",
        "score": 0.7,
        "top": [{"label": "1", "class": 1, "score": 0.7}, {"label": "2", "class": 2, "score": 0.2}],
    }


def test_labels_of_their_own_have_scores_of_their_own() -> None:
    task = ClassificationTask(Classification(activation="sigmoid", min_score=0.5), ("rust", "crack", "leak"))
    first, second = task.answers({"x": np.array([[2, -3, 4], [-2, -3, -4]], np.float32)}, 2)
    assert [one["label"] for one in first["top"]] == ["leak", "rust"]
    assert first["top"][1]["score"] == pytest.approx(1 / (1 + math.exp(-2)), abs=6e-5)
    assert [one["label"] for one in second["top"]] == ["rust"]  # the best one is always told


def test_of_equal_scores_the_first_class_comes_first() -> None:
    (answer,) = ClassificationTask(Classification(top_k=3), ()).answers(
        {"x": np.zeros((1, 4), np.float32)}, 1
    )
    assert [one["class"] for one in answer["top"]] == [0, 1, 2]


def test_numbers_that_are_not_finite_spoil_only_their_own_answer() -> None:
    logits = np.array([[1, 2], [np.nan, 2], [3, np.inf], [2, 1]], np.float32)
    answers = ClassificationTask(Classification(), ()).answers({"x": logits}, 4)
    assert answers[1:3] == [{"error": "not_finite"}] * 2
    assert (answers[0]["label"], answers[3]["label"]) == ("1", "0")


def test_the_output_is_chosen_by_name() -> None:
    outputs = {"features": np.zeros((1, 9), np.float32), "logits": np.array([[[[0.0]], [[9.0]]]], np.float32)}
    (answer,) = ClassificationTask(Classification(names=("logits",)), ()).answers(outputs, 1)
    assert answer["label"] == "1"
    with pytest.raises(ModelError, match=r"no output 'logit', only features, logits"):
        ClassificationTask(Classification(names=("logit",)), ()).answers(outputs, 1)
    with pytest.raises(ModelError, match="not \\[n, classes\\]"):
        ClassificationTask(Classification(), ()).answers({"x": np.zeros((2, 3, 4))}, 2)
    with pytest.raises(ModelError, match="for 3 inputs"):
        ClassificationTask(Classification(), ()).answers({"x": np.zeros((2, 3))}, 3)
    with pytest.raises(ModelError, match="no output for scores"):
        ClassificationTask(Classification(), ()).answers({}, 3)
