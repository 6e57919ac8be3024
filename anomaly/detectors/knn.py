"""Nearest neighbour over lagged windows: how far the last few values together are from any such run before.

What it finds: shapes that were never met: a usual value after an unusual one, a missing peak, a rhythm out of
step, even where each value alone is usual. When it misleads: on values that jump about without memory, every
run is new, and the score is noise (the calibration then makes it harmless, and useless). A run that is
interrupted by a missing value is taken as if it were whole.

For each sensor and field, with the last w values as a point and each run of w values that ended before it
began, at most 2,941 of them: raw score = the smallest root mean square difference / spread, spread being the
mean distance of the values from their mean.

Cost: 0.9 us a reading and field at w = 4, 6.5 KB a sensor and field. Source: E. Burnaev, V. Ishimtsev,
"Conformalized density- and distance-based anomaly detection in time-series data" (2016), KNN-CAD, with w
values in place of 19 and one neighbour.

    >>> import numpy as np
    >>> detector = KnnDetector(KnnConfig(), ("temperature",))
    >>> rows, ts = np.zeros(500, np.int32), np.arange(500.0)
    >>> values = 20 + np.sin(np.arange(500.0))[:, None]
    >>> values[499] = values[498]
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> explain(499, 0).partition(";")[0]
    'the last 4 values, up to 20.9983, are 0.211 from the most similar run of the last 499'
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.compiled import compiled, compiled_any_order
from anomaly.detectors.frame import CellConfig, CellDetector
from anomaly.detectors.memory import HORIZON, MEMORY, clip, relative, remember, smallest, unfold

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray
    from anomaly.detectors.memory import Line

LONGEST = 32


class KnnConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `knn`.

    Args:
        warmup: readings of a sensor and field before it is scored.
        window: values in a run.
    """

    warmup: int = 150
    window: int = 4

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if not 2 <= self.window <= LONGEST:
            faults["window"] = f"{self.window} is not in [2, {LONGEST}]"
        if self.warmup < 3 * self.window:
            faults["warmup"] = f"{self.warmup} is less than three windows of {self.window}"
        return faults


@compiled_any_order
def nearest_four(line: Line, n: int, x: float, work: Line) -> float:
    """Return the distance of (x, the last three values) to the nearest of the runs of four before them.

    Args:
        line: float32, the values before x, oldest first.
        n: how many; at least 8.
        x: the newest value.
        work: float32, as long as `line`; overwritten.
    """
    a, b, c, d = np.float32(x), line[n - 1], line[n - 2], line[n - 3]
    for i in range(n - 6):
        p, q, r, s = line[i + 3] - a, line[i + 2] - b, line[i + 1] - c, line[i] - d
        work[i] = p * p + q * q + r * r + s * s
    return math.sqrt(smallest(work, n - 6) / 4.0)


@compiled_any_order
def nearest_run(line: Line, n: int, x: float, w: int, work: Line) -> float:
    """Return what `nearest_four` does for runs of w values; n is at least 2 w."""
    runs = n - 2 * w + 2
    for i in range(runs):
        difference = line[i + w - 1] - np.float32(x)
        work[i] = difference * difference
    for k in range(1, w):
        value = line[n - k]
        for i in range(runs):
            difference = line[i + w - 1 - k] - value
            work[i] += difference * difference
    return math.sqrt(smallest(work, runs) / w)


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    warmup: int,
    window: int,
    raw: FloatArray,
    why: FloatArray,
) -> None:
    line, work = np.empty(HORIZON, np.float32), np.empty(HORIZON, np.float32)
    for i in range(rows.shape[0]):
        for j in range(values.shape[1]):
            if values[i, j] != values[i, j]:
                raw[i, j] = math.nan
                continue
            memory = cells[rows[i], j].memory
            x = clip(values[i, j])
            if memory.seen >= warmup:
                n = unfold(memory, line)
                if window == 4:
                    distance = nearest_four(line, n, x, work)
                else:
                    distance = nearest_run(line, n, x, window, work)
                raw[i, j] = relative(distance, memory.scale)
                why[i, j, 0], why[i, j, 1], why[i, j, 2] = x, distance, n
            remember(memory, x)


class KnnDetector(CellDetector):
    """See the module."""

    name: ClassVar[str] = "knn"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = KnnConfig
    evidence: ClassVar[tuple[str, ...]] = ("now", "distance", "n")
    config: KnnConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        return np.dtype([("memory", MEMORY)])

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        _run(cells, rows, values, self.config.warmup, self.config.window, raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        return words(evidence["now"], evidence["distance"], evidence["n"], self.config.window)


def words(now: float, distance: float, n: float, window: int) -> str:
    """Say how far a run of values is from the most similar one."""
    run = f"the last {window} values, up to {now:.6g},"
    return f"{run} are {distance:.3g} from the most similar run of the last {n:,.0f}"
