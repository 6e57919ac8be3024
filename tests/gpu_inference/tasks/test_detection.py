"""Boxes: suppression against a list of Python, every format against the same scene, places in the source."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import Detection
from gpu_inference.tasks.detection import DetectionTask, suppress
from gpu_inference.tasks.geometry import Geometry

#: What is in the scene: corners in pixels of a 64 x 64 input, class, score.
SCENE = [([4, 8, 20, 30], 1, 0.9), ([40, 40, 60, 56], 0, 0.8), ([5, 8, 21, 30], 2, 0.7)]
LABELS = ("car", "person", "dog")


def overlap(a: Any, b: Any) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_suppression_keeps_what_a_plain_loop_keeps() -> None:
    rng = np.random.default_rng(3)
    corner, size = rng.uniform(0, 60, (200, 2)), rng.uniform(5, 30, (200, 2))
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    classes = rng.integers(0, 3, 200)
    for limit in (0.1, 0.3, 0.45):
        kept: list[int] = []
        for i in range(200):
            if all(classes[j] != classes[i] or overlap(boxes[i], boxes[j]) <= limit for j in kept):
                kept.append(i)
        assert suppress(boxes, classes, limit).tolist() == kept
        assert 10 < len(kept) < 190
    assert suppress(np.empty((0, 4), np.float32), np.empty(0, np.int64), 0.5).tolist() == []


def yolo(turned: bool = False, objectness: bool = False) -> np.ndarray:
    """The scene as a raw head of 30 boxes, most of them empty, with a worse copy of the first."""
    rows = np.zeros((30, 4 + objectness + 3), np.float32)
    for at, (box, number, score) in zip((3, 11, 20), SCENE, strict=True):
        left, top, right, bottom = box
        rows[at, :4] = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        rows[at, 4 + objectness + number] = score / (0.95 if objectness else 1)
        if objectness:
            rows[at, 4] = 0.95
    rows[4] = rows[3] * 0.98
    return (rows if turned else rows.T)[None].copy()


def head(name: str) -> tuple[Detection, dict[str, np.ndarray]]:
    boxes = np.array([[box for box, _, _ in SCENE]], np.float32)
    scores = np.array([[score for _, _, score in SCENE]], np.float32)
    classes = np.array([[number for _, number, _ in SCENE]])
    each = (np.eye(4)[classes[0]] * scores[0][:, None])[None]
    match name:
        case "yolo":
            return Detection(), {"out": yolo()}
        case "turned":
            return Detection(), {"out": yolo(turned=True)}
        case "objectness":
            return Detection(format="yolo-objectness"), {"out": yolo(objectness=True)}
        case "rows":
            rows = np.concatenate([boxes, scores[..., None], classes[..., None]], axis=2)
            return Detection(format="rows"), {"out": rows.astype(np.float32)}
        case "final":
            outputs = {"boxes": boxes[:, :, [1, 0, 3, 2]] / 64, "scores": scores, "classes": classes}
            return Detection(format="final", box="yxyx", unit="fraction"), outputs
        case "counted":
            outputs = {
                "n": np.array([3]),
                "b": np.concatenate([boxes, np.full((1, 5, 4), np.nan)], axis=1),
                "s": np.concatenate([scores, np.full((1, 5), 0.99)], axis=1),
                "c": np.concatenate([classes, np.zeros((1, 5))], axis=1),
            }
            return Detection(format="final", names=("b", "s", "c", "n")), outputs
        case "split":
            sized = np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=2)
            return Detection(format="split", box="xywh"), {"boxes": sized, "scores": each[..., :3]}
        case "sigmoid":
            with np.errstate(divide="ignore"):
                logits = np.maximum(np.log(each / (1 - each)), -20)
            return Detection(format="split", activation="sigmoid"), {
                "boxes": boxes,
                "scores": logits[..., :3],
            }
        case "softmax":
            each[..., 3] = 1 - each.sum(axis=2)  # the class of nothing
            logits = np.log(np.maximum(each, 1e-9))
            return Detection(format="split", activation="softmax"), {"boxes": boxes, "scores": logits}
    raise AssertionError(name)


FORMATS = ("yolo", "turned", "objectness", "rows", "final", "counted", "split", "sigmoid", "softmax")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_tells_the_same_scene(name: str) -> None:
    config, outputs = head(name)
    geometry = Geometry.fit((128, 128), (64, 64), "letterbox")
    (answer,) = DetectionTask(config, LABELS, (64, 64)).answers(outputs, 1, [geometry])
    assert [one["label"] for one in answer["boxes"]] == ["person", "car", "dog"]
    assert [one["class"] for one in answer["boxes"]] == [1, 0, 2]
    assert [one["score"] for one in answer["boxes"]] == pytest.approx([0.9, 0.8, 0.7], abs=1e-3)
    for one, (box, _, _) in zip(answer["boxes"], SCENE, strict=True):
        assert one["box"] == pytest.approx([2 * side for side in box], abs=0.02)
    json.dumps(answer, allow_nan=False)


def test_boxes_are_told_in_pixels_of_the_source_without_the_bars() -> None:
    geometry = Geometry.fit((300, 600), (64, 64), "letterbox")  # bars of 16 above and below
    boxes = np.array([[[0, 16, 64, 48], [10, 0, 20, 20], [10, 0, 20, 15]]], np.float32)
    outputs = {"b": boxes, "s": np.array([[0.9, 0.8, 0.7]]), "c": np.zeros((1, 3))}
    (answer,) = DetectionTask(Detection(format="final"), (), (64, 64)).answers(outputs, 1, [geometry])
    places = [one["box"] for one in answer["boxes"]]
    assert places == [[0, 0, 600, 300], pytest.approx([93.75, 0, 187.5, 37.5], abs=0.01)]


def test_a_batch_answers_as_one_by_one() -> None:
    rng = np.random.default_rng(5)
    head = np.concatenate(
        [
            rng.uniform(10, 50, (4, 2, 400)),
            rng.uniform(5, 20, (4, 2, 400)),
            rng.uniform(0, 1, (4, 3, 400)) ** 4,
        ],
        axis=1,
    ).astype(np.float32)
    head[2, 6, 7] = np.nan
    geometries = [Geometry.fit((100 + 10 * i, 90), (64, 64), "letterbox") for i in range(4)]
    task = DetectionTask(Detection(max_boxes=20), LABELS, (64, 64))
    together = task.answers({"o": head}, 4, geometries)
    assert together == [task.answers({"o": head[i : i + 1]}, 1, [geometries[i]])[0] for i in range(4)]
    assert together[2] == {"error": "not_finite"}
    assert together[0]["cut"]
    assert len(together[0]["boxes"]) == 20


def test_nothing_there_is_an_answer_too() -> None:
    task = DetectionTask(Detection(), LABELS, (64, 64))
    assert task.answers({"o": np.zeros((1, 7, 100), np.float32)}, 1, [None]) == [{"boxes": []}]


def test_outputs_of_another_format_are_refused() -> None:
    task = DetectionTask(Detection(format="rows"), LABELS, (64, 64))
    with pytest.raises(ModelError, match="does not fit format 'rows'"):
        task.answers({"o": np.zeros((1, 7, 100), np.float32)}, 1, [None])
