"""How much: named values with their units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import Regression
from gpu_inference.tasks.answers import NOT_FINITE, Answer, Array, finite_rows, roles, significant
from gpu_inference.tasks.geometry import Geometry


class RegressionTask:
    """Answers `{"values": {name: number}, "units": {name: unit}}`; units only where there are some.

    Args:
        config: `[output]` of the model.
    """

    def __init__(self, config: Regression) -> None:
        self._config = config
        self._units = {
            name: unit for name, unit in zip(config.values, config.units, strict=bool(config.units)) if unit
        }

    def answers(
        self, outputs: Mapping[str, Array], count: int, geometries: Sequence[Geometry | None] = ()
    ) -> list[Answer]:
        """See Task."""
        wanted = self._config.names or list(outputs)[:1]
        arrays = roles(outputs, self._config.names, count, [f"value {i}" for i in range(len(wanted) or 1)])
        values = np.concatenate([array.reshape(count, -1) for array in arrays], axis=1).astype(np.float64)
        names = self._config.values or tuple(f"value_{i}" for i in range(values.shape[1]))
        if len(names) != values.shape[1]:
            raise ModelError(f"the model gives {values.shape[1]} values, not {len(names)}: set output.values")
        values = values * np.array(self._config.scale) + np.array(self._config.offset)
        good = finite_rows(values).tolist()
        return [
            self._answer(names, row) if fine else {"error": NOT_FINITE}
            for fine, row in zip(good, values.tolist(), strict=True)
        ]

    def _answer(self, names: Sequence[str], row: list[float]) -> Answer:
        answer: Answer = {"values": {name: significant(x) for name, x in zip(names, row, strict=True)}}
        if self._units:
            answer["units"] = dict(self._units)
        return answer
