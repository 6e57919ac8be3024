"""Out of range: a value beyond bounds that the configuration states.

What it finds: values that must not be, whatever the past says of them: a data sheet's limits, a law's, what a
sensor can measure at all. When it misleads: never of itself; bounds that are too narrow for what is usual
make every such reading an alarm, and everything within them is fine to it. A stream has one detector, and
this one sees nothing else: where bounds are to come on top of another detector, or differ between sensors,
use threshold rules with `low` and `high` (docs/thresholds.md), which mean the same.

For each field with a lower bound, an upper bound or both:

    distance = max(low - x, x - high)
    score    = threshold (1 + min(distance / span, 9))      where the distance is above 0, else 0

with span = high - low, or the size of the bound where there is one (1 where that is 0). The threshold is
log10(once_in): a reading at the bound counts like one that other detectors meet once in `once_in` readings.

Cost: 0.005 us a reading and field, 16 bytes.

    >>> import numpy as np
    >>> config = OutOfRangeConfig(low={"temperature": -20.0}, high={"temperature": 90.0})
    >>> detector = OutOfRangeDetector(config, ("temperature",))
    >>> rows, ts = np.zeros(3, np.int32), np.array([0.0, 10, 20])
    >>> scores, explain = detector.examine(detector.init(1), rows, np.array([[71.0], [91.0], [145.0]]), ts)
    >>> scores[:, 0].round(2).tolist()
    [0.0, 4.04, 6.0]
    >>> explain(2, 0)
    '145 is 55 above the upper bound 90; out of range for 2 readings (10 s)'
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np

from anomaly.compiled import compiled
from anomaly.detectors.direct import DirectDetector
from anomaly.detectors.frame import CellConfig
from anomaly.errors import BadDetector
from streams.errors import Fault

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray

#: The score stops rising at so many spans.
MOST_SPANS = 9.0


class OutOfRangeConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `out_of_range`.

    Args:
        once_in: sets the score at a bound, log10(once_in).
        warmup: readings of a sensor and field before it is scored, from 0.
        low, high: the smallest and the largest value that is fine, by field, in the field's unit.
    """

    warmup: int = 0
    low: dict[str, float] = msgspec.field(default_factory=dict)
    high: dict[str, float] = msgspec.field(default_factory=dict)

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if self.warmup == 0:
            del faults["warmup"]
        for side, bounds in (("low", self.low), ("high", self.high)):
            for field, bound in bounds.items():
                if not math.isfinite(bound):
                    faults[f"{side}.{field}"] = f"{bound} is no bound: leave it out"
        for field in self.low.keys() & self.high.keys():
            if self.low[field] >= self.high[field]:
                faults[f"low.{field}"] = f"{self.low[field]} is not below high.{field} = {self.high[field]}"
        return faults


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    warmup: int,
    bounds: FloatArray,
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
            low, high, span, threshold = bounds[j]
            over = max(low - x, x - high)
            if over > 0.0:
                if cell.run == 0:
                    cell.since = ts[i]
                cell.run = min(cell.run + 1, 1 << 30)
            else:
                cell.run = 0
            if cell.n >= warmup:
                raw[i, j] = threshold * (1.0 + min(over / span, MOST_SPANS)) if over > 0.0 else 0.0
                why[i, j, 0] = x
                why[i, j, 1] = cell.run
                why[i, j, 2] = ts[i] - cell.since
            if cell.n < 1 << 30:
                cell.n += 1


class OutOfRangeDetector(DirectDetector):
    """See the module.

    Raises:
        BadDetector: a bound names a field that the stream does not have.
    """

    name: ClassVar[str] = "out_of_range"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = OutOfRangeConfig
    evidence: ClassVar[tuple[str, ...]] = ("now", "readings", "lasted_s")

    def __init__(
        self,
        config: OutOfRangeConfig,
        fields: tuple[str, ...],
        field_thresholds: dict[str, float] | None = None,
    ) -> None:
        super().__init__(config, fields, field_thresholds)
        strangers = [
            Fault(f"{side}.{field}", f"is not a field: use one of {', '.join(fields)}")
            for side, bounds in (("low", config.low), ("high", config.high))
            for field in bounds
            if field not in fields
        ]
        if strangers:
            raise BadDetector(strangers)
        low = np.array([config.low.get(field, -math.inf) for field in fields])
        high = np.array([config.high.get(field, math.inf) for field in fields])
        span = np.where(np.isinf(high), np.abs(low), np.where(np.isinf(low), np.abs(high), high - low))
        # float64 [fields, 4]: low, high, span, threshold
        self._bounds = np.stack([low, high, np.where(span > 0, span, 1.0), self.thresholds], axis=1)

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        return np.dtype([("n", "<i4"), ("run", "<i4"), ("since", "<f8")])

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        _run(cells, rows, values, ts, self.config.warmup, self._bounds, raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        now = evidence["now"]
        low, high = self._bounds[column, :2]
        if low <= now <= high:
            return f"{now:.6g} is within its bounds" if np.isfinite(high - low) else f"{now:.6g} is fine"
        side, bound = ("above the upper", high) if now > high else ("below the lower", low)
        readings = int(evidence["readings"])
        text = f"{now:.6g} is {abs(now - bound):.3g} {side} bound {bound:.6g}"
        if readings > 1:
            text += f"; out of range for {readings} readings ({evidence['lasted_s']:.4g} s)"
        return text
