"""Which pixel is what: a mask for each class, in runs, at the size of the source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_inference.compiled import compiled
from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import Segmentation
from gpu_inference.tasks.answers import NOT_FINITE, Answer, Array, finite_rows, label_of, roles
from gpu_inference.tasks.geometry import Geometry

#: The class of pixels that the model didn't see: a crop left them out.
UNSEEN = -1


class SegmentationTask:
    """Answers `{"masks": [{"label", "class", "pixels", "rle": {"size": [h, w], "counts": [...]}}]}`.

    `rle` is COCO's uncompressed form: runs down the columns, from left to right, alternating between outside
    and inside, outside first. A pixel of the source has the class of the output's pixel that it lies in.

    Args:
        config: `[output]` of the model.
        labels: by class.
        size: height and width of the model's input.
    """

    def __init__(self, config: Segmentation, labels: Sequence[str], size: tuple[int, int]) -> None:
        self._config, self._labels, self._size = config, tuple(labels), size
        self._limit = config.threshold
        if config.activation == "sigmoid":  # one number is compared instead of every pixel turned
            p = min(max(config.threshold, 1e-9), 1 - 1e-9)
            self._limit = math.log(p / (1 - p))

    def answers(
        self, outputs: Mapping[str, Array], count: int, geometries: Sequence[Geometry | None] = ()
    ) -> list[Answer]:
        """See Task; without a geometry masks are those of the model's input."""
        (raw,) = roles(outputs, self._config.names, count, ["classes"])
        good = finite_rows(raw).tolist()
        found: list[Answer] = []
        for row in range(count):
            if not good[row]:
                found.append({"error": NOT_FINITE})
                continue
            geometry = geometries[row] if row < len(geometries) else None
            whole = Geometry.fit(self._size, self._size, "stretch")
            found.append(self._answer(self._classes(raw[row]), geometry or whole))
        return found

    def _classes(self, scores: Array) -> NDArray[np.int16]:
        """The class of each pixel of the output: int16 [h, w]."""
        if scores.dtype.kind in "iub":
            if scores.ndim == 3 and 1 in (scores.shape[0], scores.shape[2]):
                scores = scores[0] if scores.shape[0] == 1 else scores[:, :, 0]
            self._check(scores.ndim == 2, scores)
            return scores.astype(np.int16)
        self._check(scores.ndim == 3, scores)
        if self._config.layout == "NHWC":
            scores = scores.transpose(2, 0, 1)
        if scores.shape[0] == 1:
            return np.asarray(scores[0] >= self._limit, np.int16)
        return best_class(np.ascontiguousarray(scores, np.float32))

    def _answer(self, classes: NDArray[np.int16], geometry: Geometry) -> Answer:
        labels, lengths = runs(classes, geometry)
        ends = np.cumsum(lengths)
        masks = []
        for number in np.unique(labels).tolist():
            inside = labels == number
            pixels = int(lengths[inside].sum())
            if number == UNSEEN or number in self._config.ignore or pixels < self._config.min_pixels:
                continue
            masks.append(
                {
                    "label": label_of(self._labels, number),
                    "class": number,
                    "pixels": pixels,
                    "rle": {
                        "size": list(geometry.source),
                        "counts": counts(ends[inside] - lengths[inside], ends[inside], int(ends[-1])),
                    },
                }
            )
        return {"masks": masks}

    def _check(self, fits: bool, array: Array) -> None:
        if not fits:
            raise ModelError(
                f"an output of shape [n, {', '.join(map(str, array.shape))}] is no segmentation: "
                "it must be scores [n, classes, h, w] or class numbers [n, h, w]; set output.names and layout"
            )


def runs(classes: NDArray[np.int16], geometry: Geometry) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """The classes of the source's pixels in runs down the columns.

    Args:
        classes: int16 [h, w], of the output's pixels.
        geometry: of the source in the model's input.

    Returns:
        int16 [k] and int64 [k], the class and the length of each run; neighbours differ.
    """
    (h, w), (th, tw) = geometry.source, geometry.target
    (rt, rl, rh, rw), (it, il, ih, iw) = geometry.region, geometry.inner
    rows, heights = np.unique(_cells(h, rt, rh, it, ih, th, classes.shape[0]), return_counts=True)
    if rows[0] == UNSEEN and rt + rh < h:  # above and below
        rows = np.append(rows, UNSEEN)
        heights = np.append(np.concatenate([[rt], heights[1:]]), h - rt - rh)
        if rt == 0:
            rows, heights = rows[1:], heights[1:]
    columns = _cells(w, rl, rw, il, iw, tw, classes.shape[1])
    labels, lengths = _runs(np.ascontiguousarray(classes.T), columns, rows, heights)
    return labels, lengths


def _cells(
    size: int, start: int, length: int, inner_start: int, inner: int, target: int, cells: int
) -> Array:
    """The output's row in which each row of the source lies, UNSEEN outside the region; for columns too."""
    centres = (np.arange(length) + 0.5) * inner / length + inner_start
    found = np.full(size, UNSEEN, np.int64)
    found[start : start + length] = np.minimum((centres * cells / target).astype(np.int64), cells - 1)
    return found


def counts(starts: Array, ends: Array, total: int) -> list[int]:
    """Lengths outside and inside by turns, of runs inside given by start and end."""
    edges = np.empty(2 * len(starts) + 2, np.int64)
    edges[0], edges[-1] = 0, total
    edges[1:-1:2], edges[2:-1:2] = starts, ends
    lengths: list[int] = np.diff(edges).tolist()
    return lengths if lengths[-1] else lengths[:-1]


def best_class(scores: NDArray[np.float32]) -> NDArray[np.int16]:
    """The class of the highest score, of equal ones the first: float32 [c, h, w] to int16 [h, w]."""
    out = np.zeros(scores.shape[1:], np.int16)
    _best_class(scores, out)
    return out


@compiled
def _best_class(scores: Any, out: Any) -> None:
    # a row of all classes at a time: 21 x 512 x 512 takes 0.8 ms, NumPy's argmax over the first axis 26
    best = np.empty(scores.shape[2], np.float32)
    for y in range(scores.shape[1]):
        best[:] = scores[0, y]
        line = out[y]
        for c in range(1, scores.shape[0]):
            row = scores[c, y]
            for x in range(np.uint32(scores.shape[2])):
                if row[x] > best[x]:
                    best[x] = row[x]
                    line[x] = c


@compiled
def _runs(transposed: Any, columns: Any, rows: Any, heights: Any) -> Any:
    # a step a row of the output, not of the source: 1920 x 1080 from 512 x 512 takes 1 ms, pixel by pixel 12
    labels = np.empty(columns.size * rows.size, np.int16)
    lengths = np.empty(columns.size * rows.size, np.int64)
    last = -1
    for column in columns:
        for i in range(rows.size):
            label = np.int16(UNSEEN)
            if column != UNSEEN and rows[i] != UNSEEN:
                label = transposed[column, rows[i]]
            if last >= 0 and labels[last] == label:
                lengths[last] += heights[i]
            else:
                last += 1
                labels[last], lengths[last] = label, heights[i]
    return labels[: last + 1].copy(), lengths[: last + 1].copy()
