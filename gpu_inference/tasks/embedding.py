"""A picture or a window as a point, for searching what is alike."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import numpy as np

from gpu_inference.models.manifest import Embedding
from gpu_inference.tasks.answers import NOT_FINITE, Answer, Array, finite_rows, roles, rounded
from gpu_inference.tasks.geometry import Geometry


class EmbeddingTask:
    """Answers `{"embedding": [...], "dimensions"}`, or base64 text with `"encoding": "float16"` or "float32".

    Args:
        config: `[output]` of the model.
    """

    def __init__(self, config: Embedding) -> None:
        self._config = config

    def answers(
        self, outputs: Mapping[str, Array], count: int, geometries: Sequence[Geometry | None] = ()
    ) -> list[Answer]:
        """See Task."""
        (raw,) = roles(outputs, self._config.names, count, ["embeddings"])
        points = raw.reshape(count, -1).astype(np.float64)
        good = finite_rows(points)
        points = np.where(good[:, None], points, 0)
        if self._config.unit_norm:
            lengths = np.linalg.norm(points, axis=1, keepdims=True)
            points /= np.where(lengths == 0, 1, lengths)
        if self._config.encoding == "float16":
            good &= (np.abs(points) <= np.finfo(np.float16).max).all(axis=1)
            points = np.where(good[:, None], points, 0)
        encoded = self._encoded(points)
        return [
            one if fine else {"error": NOT_FINITE} for one, fine in zip(encoded, good.tolist(), strict=True)
        ]

    def _encoded(self, points: Array) -> list[Answer]:
        size = points.shape[1]
        encoding = self._config.encoding
        if encoding == "list":
            return [{"embedding": one, "dimensions": size} for one in rounded(points, 6)]
        packed = points.astype("<f2" if encoding == "float16" else "<f4")
        return [
            {"embedding": base64.b64encode(one.tobytes()).decode(), "encoding": encoding, "dimensions": size}
            for one in packed
        ]
