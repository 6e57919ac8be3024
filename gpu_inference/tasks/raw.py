"""The model's outputs as they are, for who knows what they mean."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpu_inference.models.manifest import Raw
from gpu_inference.tasks.answers import NOT_FINITE, Answer, Array, finite_rows, roles
from gpu_inference.tasks.geometry import Geometry


class RawTask:
    """Answers `{"outputs": {name: {"dtype", "shape", "data"}}}`: base64 of little-endian numbers.

    Args:
        config: `[output]` of the model.
    """

    def __init__(self, config: Raw) -> None:
        self._config = config

    def answers(
        self, outputs: Mapping[str, Array], count: int, geometries: Sequence[Geometry | None] = ()
    ) -> list[Answer]:
        """See Task."""
        names = self._config.names or tuple(outputs)
        arrays = roles(outputs, names, count, names)
        return [
            {"outputs": {name: _packed(array[row]) for name, array in zip(names, arrays, strict=True)}}
            if fine
            else {"error": NOT_FINITE}
            for row, fine in enumerate(finite_rows(*arrays).tolist())
        ]


def unpack(packed: Mapping[str, Any]) -> Array:
    """One output of an answer as an array.

    Raises:
        ValueError: it is none.
    """
    data = base64.b64decode(packed["data"])
    return np.frombuffer(data, np.dtype(packed["dtype"]).newbyteorder("<")).reshape(packed["shape"])


def _packed(array: Array) -> dict[str, Any]:
    plain = np.asarray(array)
    data = plain.astype(plain.dtype.newbyteorder("<"), copy=False).tobytes()
    return {
        "dtype": plain.dtype.name,
        "shape": list(plain.shape),
        "data": base64.b64encode(data).decode(),
    }
