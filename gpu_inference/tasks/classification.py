"""Which class: the best few with their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import Classification
from gpu_inference.tasks.answers import (
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


class ClassificationTask:
    """Answers `{"label", "score", "top": [{"label", "class", "score"}]}`, the best class first.

    Args:
        config: `[output]` of the model.
        labels: by class.
    """

    def __init__(self, config: Classification, labels: Sequence[str]) -> None:
        self._config, self._labels = config, tuple(labels)

    def answers(
        self, outputs: Mapping[str, Array], count: int, geometries: Sequence[Geometry | None] = ()
    ) -> list[Answer]:
        """See Task."""
        (raw,) = roles(outputs, self._config.names, count, ["scores"])
        if raw.ndim < 2 or raw.size != count * raw.shape[1]:
            raise ModelError(
                f"scores have shape {raw.shape}, not [n, classes]: name the right output in output.names"
            )
        raw = raw.reshape(count, -1)
        good = finite_rows(raw)
        raw = np.where(good[:, None], raw, 0)
        match self._config.activation:
            case "softmax":
                scores = softmax(raw)
            case "sigmoid":
                scores = sigmoid(raw)
            case _:
                scores = raw.astype(np.float32)
        classes = _best(scores, min(self._config.top_k, scores.shape[1]))
        best = np.take_along_axis(scores, classes, axis=1)
        kept = np.maximum((best >= self._config.min_score).sum(axis=1), 1).tolist()
        rows = zip(good.tolist(), classes.tolist(), rounded(best, SCORE_DIGITS), kept, strict=True)
        return [self._answer(c[:k], s[:k]) if fine else {"error": NOT_FINITE} for fine, c, s, k in rows]

    def _answer(self, classes: list[int], scores: list[float]) -> Answer:
        top = [
            {"label": label_of(self._labels, c), "class": c, "score": s}
            for c, s in zip(classes, scores, strict=True)
        ]
        return {"label": top[0]["label"], "score": scores[0], "top": top}


def _best(scores: Array, k: int) -> Array:
    """The k best classes of each row, best first; of equal ones the first: int [n, k]."""
    if 2 * k >= scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    chosen = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(scores, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)
