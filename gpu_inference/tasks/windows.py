"""The last readings of each sensor as model input.

State is one row a sensor, so that it is kept and moved like that of detectors. A field without a value keeps
the sensor's last one; readings count from the first one after which every field has a value. Which readings
complete a window and what is in it doesn't depend on how the stream is cut.

A window of 64 readings of 3 fields takes 0.3 us, nearly all of it the copy; with a stride of 16 a reading
takes 0.03 us.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_inference.compiled import compiled
from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import SeriesInput


class Windows:
    """Makes windows of readings.

    Args:
        config: `[input]` of the model.

    Attributes:
        dtype: of one sensor's state; all zero means never seen.
        shape: of one window in the batch.
    """

    def __init__(self, config: SeriesInput) -> None:
        self._config = config
        fields = len(config.fields)
        self.dtype = np.dtype(
            [
                ("count", "<i8"),
                ("known", "u1", (fields,)),
                ("last", "<f4", (fields,)),
                ("values", "<f4", (config.window, fields)),
            ]
        )
        self.shape = (config.window, fields) if config.layout == "NWF" else (fields, config.window)
        self._mean = np.ascontiguousarray(np.broadcast_to(np.array(config.mean), fields))
        self._std = np.ascontiguousarray(np.broadcast_to(np.array(config.std), fields))

    def push(
        self, state: NDArray[Any], rows: NDArray[np.int32], values: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Takes readings.

        Args:
            state: structured [sensors] of `dtype`, changed in place.
            rows: int32 [n], the sensor of each reading, in time order.
            values: float64 [n, fields]; NaN where a field has no value.

        Returns:
            int64 [m], the readings that completed a window, and the windows [m, *shape] in the model's type,
            normalised, oldest reading first.

        Raises:
            ModelError: the values have another number of fields.
        """
        if values.ndim != 2 or values.shape[1] != len(self._config.fields):
            known = ", ".join(self._config.fields)
            raise ModelError(f"readings of shape {values.shape} have not the fields {known}: choose those")
        ready = np.zeros(len(rows), np.bool_)
        window, stride = self._config.window, self._config.stride
        complete = _complete(
            state["known"].copy(), state["count"].copy(), rows, values, window, stride, ready
        )
        out = np.empty((complete, window, len(self._config.fields)), np.float32)
        _push(state, rows, values, ready, self._mean, self._std, out)
        if self._config.layout == "NFW":
            out = out.transpose(0, 2, 1)
        return np.flatnonzero(ready), np.ascontiguousarray(out, self._config.dtype)


@compiled
def _complete(known: Any, counts: Any, rows: Any, values: Any, window: int, stride: int, ready: Any) -> int:
    """Marks the readings that complete a window, and counts them; `known` and `counts` are changed."""
    complete = 0
    for i in range(len(rows)):
        row = rows[i]
        whole = True
        for field in range(values.shape[1]):
            if np.isfinite(values[i, field]):
                known[row, field] = 1
            whole = whole and known[row, field] == 1
        if whole:
            counts[row] += 1
            if counts[row] >= window and (counts[row] - window) % stride == 0:
                ready[i] = True
                complete += 1
    return complete


@compiled
def _push(state: Any, rows: Any, values: Any, ready: Any, mean: Any, std: Any, out: Any) -> None:
    window, fields = out.shape[1], out.shape[2]
    made = 0
    for i in range(len(rows)):
        row = state[rows[i]]
        whole = True
        for field in range(fields):
            if np.isfinite(values[i, field]):
                row.last[field] = values[i, field]
                row.known[field] = 1
            whole = whole and row.known[field] == 1
        if not whole:
            continue
        at = row.count % window
        for field in range(fields):
            row.values[at, field] = row.last[field]
        row.count += 1
        if ready[i]:
            for w in range(window):
                for field in range(fields):
                    value = np.float64(row.values[(at + 1 + w) % window, field])
                    out[made, w, field] = (value - mean[field]) / std[field]
            made += 1
