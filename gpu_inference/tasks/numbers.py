"""Tensors and windows of readings to model input, one at a time, as requests bring them.

`windows.py` makes windows of a stream, from the state of its sensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import SeriesInput, TensorInput


class TensorPreprocessor:
    """Checks the tensors of one model. Threads may share it.

    Args:
        config: `[input]` of the model.
    """

    def __init__(self, config: TensorInput) -> None:
        self.shape = tuple(config.shape)
        self.dtype = np.dtype(config.dtype)

    def fit(self, array: NDArray[Any]) -> NDArray[Any]:
        """Takes one tensor.

        Args:
            array: [*shape] or [1, *shape] of the model's type.

        Raises:
            ModelError: it has another shape or type.
        """
        if array.dtype != self.dtype or array.shape not in (self.shape, (1, *self.shape)):
            raise ModelError(
                f"{array.dtype} {list(array.shape)} is no input of the model: "
                f"send {self.dtype} {list(self.shape)}"
            )
        return array.reshape(self.shape)

    def fill(self, array: NDArray[Any], slot: NDArray[Any]) -> None:
        """Copies what `fit` gave into its place in the batch."""
        slot[...] = array

    def warm(self) -> None:
        """Nothing to compile."""


class SeriesPreprocessor:
    """Makes the windows of one model from readings. Threads may share it.

    Args:
        config: `[input]` of the model.
    """

    def __init__(self, config: SeriesInput) -> None:
        self._config = config

    def fit(self, readings: Sequence[Any]) -> NDArray[np.float64]:
        """Makes one window.

        Args:
            readings: oldest first; each an object with a number for each field of the model, or a list of
                numbers in the order of the fields. Of more than the window's length, the last ones count.

        Returns:
            float64 [window, fields].

        Raises:
            ModelError: there are too few, or a number is missing.
        """
        fields, window = self._config.fields, self._config.window
        if len(readings) < window:
            raise ModelError(f"{len(readings)} readings are no window: send {window}, oldest first")
        rows = [
            [reading.get(name) for name in fields] if isinstance(reading, Mapping) else reading
            for reading in readings[-window:]
        ]
        try:
            values = np.array(rows, np.float64)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.shape != (window, len(fields)) or not np.isfinite(values).all():
            raise ModelError(f"a reading lacks a number: send one for each of {', '.join(fields)}")
        return values

    def fill(self, values: NDArray[np.float64], slot: NDArray[Any]) -> None:
        """Normalises what `fit` gave into its place in the batch."""
        normal = (values - self._config.mean) / self._config.std
        slot[...] = normal if self._config.layout == "NWF" else normal.T

    def warm(self) -> None:
        """Nothing to compile."""
