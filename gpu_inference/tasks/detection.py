"""What is where: boxes in pixels of the source, each with a class and a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpu_inference.compiled import compiled
from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import Detection
from gpu_inference.tasks.answers import (
    BOX_DIGITS,
    NOT_FINITE,
    SCORE_DIGITS,
    Answer,
    Array,
    finite_rows,
    label_of,
    roles,
    rounded,
    sigmoid,
    softmax,
)
from gpu_inference.tasks.geometry import Geometry

#: Boxes that suppression looks at, the best ones: its cost grows with their square (1,000: 1 ms at worst).
MAX_CANDIDATES: Final = 1000


class DetectionTask:
    """Answers `{"boxes": [{"label", "class", "score", "box": [left, top, right, bottom]}]}`, best first.

    Boxes are in pixels of the source, cut off at its edges. `cut: true` is added where there were more than
    `max_boxes`.

    Args:
        config: `[output]` of the model.
        labels: by class.
        size: height and width of the model's input.
    """

    def __init__(self, config: Detection, labels: Sequence[str], size: tuple[int, int]) -> None:
        self._config, self._labels, self._size = config, tuple(labels), size
        final = config.format in ("rows", "final")
        self._order = config.box or ("cxcywh" if config.format.startswith("yolo") else "xyxy")
        self._max_overlap = config.max_overlap if config.max_overlap is not None else 1.0 if final else 0.45

    def answers(
        self, outputs: Mapping[str, Array], count: int, geometries: Sequence[Geometry | None] = ()
    ) -> list[Answer]:
        """See Task; geometries are needed."""
        boxes, scores, classes, looked_at = self._candidates(outputs, count)
        good = finite_rows(*looked_at).tolist()
        found = []
        for row in range(count):
            if not good[row]:
                found.append({"error": NOT_FINITE})
                continue
            geometry = geometries[row] if row < len(geometries) else None
            chosen = np.flatnonzero(scores[row] >= self._config.min_score)
            numbers = classes(row, chosen)
            found.append(self._answer(boxes[row][chosen], scores[row][chosen], numbers, geometry))
        return found

    def _answer(self, boxes: Array, scores: Array, classes: Array, geometry: Geometry | None) -> Answer:
        order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
        corners = self._corners(boxes[order].astype(np.float32))
        scores, classes = scores[order], classes[order].astype(np.int64)
        if self._max_overlap < 1:
            kept = suppress(corners, classes, self._max_overlap)
            corners, scores, classes = corners[kept], scores[kept], classes[kept]
        if geometry is not None:
            corners = geometry.to_source(corners)
        seen = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])  # not wholly in a bar
        corners, scores, classes = corners[seen], scores[seen], classes[seen]
        most = self._config.max_boxes
        numbers, values = classes[:most].tolist(), rounded(scores[:most], SCORE_DIGITS)
        places = rounded(corners[:most], BOX_DIGITS)
        answer: Answer = {
            "boxes": [
                {"label": label_of(self._labels, c), "class": c, "score": s, "box": b}
                for c, s, b in zip(numbers, values, places, strict=True)
            ]
        }
        if len(classes) > most:
            answer["cut"] = True
        return answer

    def _candidates(
        self, outputs: Mapping[str, Array], count: int
    ) -> tuple[Array, Array, Any, tuple[Array, ...]]:
        """Boxes [n, k, 4], scores [n, k], a function for the classes of some, all that must be finite."""
        config = self._config
        match config.format:
            case "final":
                boxes, scores, classes, *counts = roles(
                    outputs, config.names, count, ["boxes", "scores", "classes", "(counts)"]
                )
                self._check(
                    boxes.ndim == 3 and boxes.shape[2] == 4 and scores.shape == boxes.shape[:2], boxes
                )
                self._check(classes.shape == scores.shape, classes)
                if counts:
                    used = np.arange(scores.shape[1]) < counts[0].reshape(count, 1)
                    scores, boxes = np.where(used, scores, -1.0), np.where(used[:, :, None], boxes, 0)
                    classes = np.where(used, classes, 0)
                return boxes, scores, lambda row, chosen: classes[row][chosen], (boxes, scores, classes)
            case "rows":
                (rows,) = roles(outputs, config.names, count, ["rows"])
                self._check(rows.ndim == 3 and rows.shape[2] == 6, rows)
                return rows[:, :, :4], rows[:, :, 4], lambda row, chosen: rows[row, chosen, 5], (rows,)
            case "split":
                boxes, each = roles(outputs, config.names, count, ["boxes", "class scores"])
                self._check(boxes.ndim == 3 and boxes.shape[2] == 4 and each.ndim == 3, boxes)
                self._check(each.shape[:2] == boxes.shape[:2], each)
                return *self._best(boxes, each.transpose(0, 2, 1)), (boxes, each)
            case _:
                (rows,) = roles(outputs, config.names, count, ["rows"])
                first = 5 if config.format == "yolo-objectness" else 4
                self._check(rows.ndim == 3 and max(rows.shape[1:]) > first, rows)
                # [n, boxes, values] is turned: there are more boxes than values
                if rows.shape[1] > rows.shape[2]:
                    rows = rows.transpose(0, 2, 1)
                boxes, each = rows[:, :4].transpose(0, 2, 1), rows[:, first:]
                if first == 4:
                    return *self._best(boxes, each), (rows,)
                there = sigmoid(rows[:, 4]) if config.activation == "sigmoid" else rows[:, 4]
                boxes, scores, best = self._best(boxes, each)
                return boxes, scores * there, best, (rows,)

    def _best(self, boxes: Array, each: Array) -> tuple[Array, Array, Any]:
        """The best class of each box; class scores are [n, classes, k]."""
        match self._config.activation:
            case "softmax":
                each = softmax(each.transpose(0, 2, 1))[:, :, :-1].transpose(0, 2, 1)
                scores = each.max(axis=1)
            case "sigmoid":
                scores = sigmoid(each.max(axis=1))
            case _:
                scores = each.max(axis=1)
        # which class it is costs more than how good it is, and few are asked for
        return boxes, scores, lambda row, chosen: each[row][:, chosen].argmax(axis=0)

    def _corners(self, boxes: Array) -> Array:
        """Left, top, right, bottom in pixels of the input."""
        if self._config.unit == "fraction":
            h, w = self._size
            boxes = boxes * np.array([h, w, h, w] if self._order == "yxyx" else [w, h, w, h], np.float32)
        match self._order:
            case "cxcywh":
                half = boxes[:, 2:] / 2
                return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
            case "xywh":
                return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
            case "yxyx":
                return boxes[:, [1, 0, 3, 2]]
        return boxes

    def _check(self, fits: bool, array: Array) -> None:
        if not fits:
            raise ModelError(
                f"an output of shape {array.shape} does not fit format {self._config.format!r}: "
                "set output.format and output.names to what the model gives"
            )


def suppress(boxes: NDArray[np.float32], classes: NDArray[np.int64], max_overlap: float) -> NDArray[np.int64]:
    """Of boxes of one class that overlap, the better one stays.

    Args:
        boxes: float32 [k, 4]: left, top, right, bottom; best first.
        classes: int64 [k].
        max_overlap: intersection over union from which on the worse one goes.

    Returns:
        int64 [m], the indices of those that stay, best first.
    """
    return np.flatnonzero(_suppress(np.ascontiguousarray(boxes, np.float32), classes, max_overlap))


@compiled
def _suppress(boxes: Any, classes: Any, max_overlap: float) -> Any:
    count = boxes.shape[0]
    kept = np.ones(count, np.bool_)
    for i in range(count):
        if not kept[i]:
            continue
        area = (boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
        for j in range(i + 1, count):
            if not kept[j] or classes[j] != classes[i]:
                continue
            width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
            height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
            if width <= 0 or height <= 0:
                continue
            other = (boxes[j, 2] - boxes[j, 0]) * (boxes[j, 3] - boxes[j, 1])
            if width * height > max_overlap * (area + other - width * height):
                kept[j] = False
    return kept
