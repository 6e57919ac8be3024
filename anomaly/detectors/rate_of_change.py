"""Rate of change: how fast a value moves, against how fast it usually does.

What it finds: jumps and slopes that are steeper than this sensor's, whatever its level and rhythm. When it
misleads: a slow fault never moves fast; a value that is still most of the time makes its usual steps look
strange (the calibration then has few of them to learn from). Readings at one time stamp, or going back in
time, have no rate.

For each sensor and field: raw score = |x - x'| / (t - t'), in the field's unit a second, where x' at t' is
the reading before.

Cost: about 0.1 us a reading and field, calibration included.

    >>> import numpy as np
    >>> detector = RateOfChangeDetector(RateOfChangeConfig(), ("temperature",))
    >>> rows, ts = np.zeros(300, np.int32), np.arange(300.0)
    >>> values = 20 + np.sin(np.arange(300.0))[:, None]
    >>> values[299] += 5
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> explain(299, 0).partition(";")[0]
    'moved 4.04 in 1 s, from 20.4361 to 24.4784'
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.compiled import compiled
from anomaly.detectors.frame import CellConfig, CellDetector

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray


class RateOfChangeConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `rate_of_change`."""


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    warmup: int,
    raw: FloatArray,
    why: FloatArray,
) -> None:
    for i in range(rows.shape[0]):
        for j in range(values.shape[1]):
            x = values[i, j]
            if x != x:
                raw[i, j] = math.nan
                continue
            cell = cells[rows[i], j]
            gap = ts[i] - cell.ts
            if cell.n > 0 and gap > 0.0 and cell.n >= warmup:
                raw[i, j] = abs(x - cell.value) / gap
                why[i, j, 0] = cell.value
                why[i, j, 1] = x
                why[i, j, 2] = gap
            if cell.n < 1 << 30:
                cell.n += 1
            cell.value = x
            cell.ts = ts[i]


class RateOfChangeDetector(CellDetector):
    """See the module."""

    name: ClassVar[str] = "rate_of_change"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = RateOfChangeConfig
    evidence: ClassVar[tuple[str, ...]] = ("before", "now", "gap_s")

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        return np.dtype([("n", "<i4"), ("value", "<f8"), ("ts", "<f8")])

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        _run(cells, rows, values, ts, self.config.warmup, raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        before, now, gap_s = evidence["before"], evidence["now"], evidence["gap_s"]
        return f"moved {now - before:.3g} in {gap_s:.3g} s, from {before:.6g} to {now:.6g}"
