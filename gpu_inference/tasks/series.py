"""What comes next: the values of a sensor's fields in the steps after a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import Series, SeriesInput
from gpu_inference.tasks.answers import NOT_FINITE, Answer, Array, finite_rows, roles, significant
from gpu_inference.tasks.geometry import Geometry


class SeriesTask:
    """Answers `{"forecast": {field: [next, the one after, ...]}}`.

    Args:
        config: `[output]` of the model.
        source: `[input]` of the model.
    """

    def __init__(self, config: Series, source: SeriesInput) -> None:
        self._config = config
        self._fields = config.fields or source.fields
        at = [source.fields.index(name) for name in self._fields]
        self._mean = np.broadcast_to(np.array(source.mean), len(source.fields))[at]
        self._std = np.broadcast_to(np.array(source.std), len(source.fields))[at]

    def answers(
        self, outputs: Mapping[str, Array], count: int, geometries: Sequence[Geometry | None] = ()
    ) -> list[Answer]:
        """See Task."""
        (raw,) = roles(outputs, self._config.names, count, ["values"])
        if raw.ndim == 2:
            raw = raw[:, :, None]
        if raw.ndim != 3 or raw.shape[2] != len(self._fields):
            wanted = f"[n, steps, {len(self._fields)}]"
            raise ModelError(
                f"an output of shape {raw.shape} is no series {wanted}: set output.names and fields"
            )
        values = raw.astype(np.float64)
        if self._config.normalised:
            values = values * self._std + self._mean
        good = finite_rows(values).tolist()
        columns = values.transpose(0, 2, 1).tolist()
        return [
            {
                "forecast": {
                    name: [significant(x) for x in column]
                    for name, column in zip(self._fields, row, strict=True)
                }
            }
            if fine
            else {"error": NOT_FINITE}
            for fine, row in zip(good, columns, strict=True)
        ]
