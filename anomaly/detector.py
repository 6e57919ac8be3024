"""What a detector is.

A detector holds parameters and no data. The data are columns that the caller owns: one structured array a
partition, one row a sensor. So state can be written to a changelog, moved and restored without the
detector knowing, and one detector serves all partitions.

Every detector obeys the same rules, and tests/contract holds all of them to these:

* A score uses the sensor's past alone, the reading itself left out.
* Any cut of the same readings into chunks gives the same scores and the same state.
* NaN means "no value": no score (NaN), nothing learned.
* No clock and no unseeded chance: same state and input, same output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import StateMismatch

FloatArray = NDArray[np.float64]
RowArray = NDArray[np.int32]
StateArray = NDArray[np.void]

#: Says in words why reading i scored what it did in score column j: "6.1 sd above the usual 71.0 ± 3.5".
Explain = Callable[[int, int], str]


class DetectorConfig(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Base of the configuration of every detector; `type` in a file chooses the detector."""

    def faults(self) -> dict[str, str]:
        """What is wrong with these values, by parameter; types are already checked."""
        return {}


@runtime_checkable
class Detector(Protocol):
    """Scores readings of many sensors, with state that the caller keeps."""

    #: The name in the registry, and its shape of the configuration.
    name: ClassVar[str]
    config_type: ClassVar[type[DetectorConfig]]
    #: Raised when the same input would give other scores.
    version: ClassVar[str]
    #: The fields that it scores: the columns of `values`.
    fields: tuple[str, ...]
    #: The state of one sensor.
    dtype: np.dtype[Any]
    #: float64 [k], the score from which a reading is anomalous, for each score column.
    thresholds: FloatArray

    def init(self, n: int) -> StateArray:
        """Return the state of n sensors that were never seen, [n]."""
        ...

    def score(self, state: StateArray, rows: RowArray, values: FloatArray, ts: FloatArray) -> FloatArray:
        """Score a chunk and learn from it.

        Args:
            state: structured [sensors] of `dtype`, changed in place.
            rows: int32 [n], the row in `state` of each reading; in log order for each sensor.
            values: float64 [n, fields] in the fields' units; NaN where there is none. Left as it is.
            ts: float64 [n], event time in seconds since 1970.

        Returns:
            float64 [n, k], larger is stranger, in the detector's unit (ewz: standard deviations); k is the
            number of fields, or 1 for a detector that scores them together. 0 in warm-up, NaN without value.
        """
        ...

    def examine(
        self, state: StateArray, rows: RowArray, values: FloatArray, ts: FloatArray
    ) -> tuple[FloatArray, Explain]:
        """Score a chunk as `score` does, and say why on demand.

        The explanation needs what was usual *before* the reading, which is gone once the state has moved
        on. So the caller gets a function that remembers it for this chunk; drop it with the chunk.
        """
        ...


def state_from_bytes(detector: Detector, data: bytes) -> StateArray:
    """Return the state that `state.tobytes()` gave, as a new array that can be written to.

    Raises:
        StateMismatch: the bytes are not whole rows of this detector's state.
    """
    if len(data) % detector.dtype.itemsize:
        raise StateMismatch(detector.name, len(data), detector.dtype.itemsize)
    return np.frombuffer(data, detector.dtype).copy()


def thresholds_of(fields: tuple[str, ...], default: float, overrides: dict[str, float] | None) -> FloatArray:
    """Return float64 [fields]: the override of each field, or the default."""
    return np.array([(overrides or {}).get(field, default) for field in fields], np.float64)
