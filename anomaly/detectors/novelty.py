"""Value novelty: how far a value is from the nearest of everything that the sensor remembers.

What it finds: values that were never met, whether beyond all others or in a gap between them, without any
model of level, rhythm or distribution. It asks only "was there anything like it?", so a repeating pattern,
however odd its shape, is usual as soon as it was met once; a new regime is strange for one reading. When it
misleads: a value that is usual in itself, but not at this hour or after the one before, is not seen
(`seasonal` and `knn` see those); a slow drift makes every new extreme a little strange.

For each sensor and field, with the trailing mean b of the last `block` values and the means b_s of blocks
that ended before it began, at most 2,944 of them: raw score = min |b - b_s| / spread, spread being the mean
distance of the values from their mean.

Cost: 0.7 us a reading and field, 6.7 KB a sensor and field. Related: conformal anomaly detection by the
nearest neighbour (R. Laxhammar, G. Falkman, 2014).

    >>> import numpy as np
    >>> detector = NoveltyDetector(NoveltyConfig(), ("temperature",))
    >>> rows, ts = np.zeros(500, np.int32), np.arange(500.0)
    >>> values = 20 + np.sin(np.arange(500.0))[:, None]
    >>> values[499] = 24
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> explain(499, 0).partition(";")[0]
    '24 is 3 from 21, the nearest of the last 499 values'
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

LONGEST_BLOCK = 16
#: Distance in spreads from which the nearest value is looked up for the explanation.
EXPLAINED = 0.05


class NoveltyConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `novelty`.

    Args:
        warmup: readings of a sensor and field before it is scored.
        block: values whose mean is compared; more are calmer on noise and later on a jump.
    """

    warmup: int = 150
    block: int = 1

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if not 1 <= self.block <= LONGEST_BLOCK:
            faults["block"] = f"{self.block} is not in [1, {LONGEST_BLOCK}]"
        return faults


@compiled_any_order
def distance_to_nearest(line: Line, n: int, x: float, work: Line) -> float:
    """Return how far x is from the nearest of the first n values, n at least 1; `work` is as long."""
    target = np.float32(x)
    for i in range(n):
        work[i] = abs(line[i] - target)
    return smallest(work, n)


@compiled
def nearest(line: Line, n: int, x: float) -> float:
    """Return the nearest of the first n values to x, n at least 1; slow, for the few that are explained."""
    target = np.float32(x)
    like = line[0]
    for i in range(1, n):
        if abs(line[i] - target) < abs(like - target):
            like = line[i]
    return float(like)


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    warmup: int,
    block: int,
    raw: FloatArray,
    why: FloatArray,
) -> None:
    line, work = np.empty(HORIZON, np.float32), np.empty(HORIZON, np.float32)
    for i in range(rows.shape[0]):
        for j in range(values.shape[1]):
            if values[i, j] != values[i, j]:
                raw[i, j] = math.nan
                continue
            cell = cells[rows[i], j]
            recent = cell.recent
            # the values, newest first
            for k in range(block - 1, 0, -1):
                recent[k] = recent[k - 1]
            recent[0] = clip(values[i, j])
            cell.seen = min(cell.seen + 1, 1 << 30)
            if cell.seen < block:
                continue
            x = 0.0
            for k in range(block):
                x += recent[k]
            x /= block
            memory = cell.memory
            n = min(unfold(memory, line), HORIZON) - (block - 1)
            if cell.seen > warmup and n > 0:
                distance = distance_to_nearest(line, n, x, work)
                raw[i, j] = relative(distance, memory.scale)
                if raw[i, j] > EXPLAINED:
                    why[i, j, 1] = nearest(line, n, x)
                why[i, j, 0], why[i, j, 2], why[i, j, 3] = x, n, distance
            remember(memory, x)


class NoveltyDetector(CellDetector):
    """See the module."""

    name: ClassVar[str] = "novelty"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = NoveltyConfig
    evidence: ClassVar[tuple[str, ...]] = ("now", "nearest", "n", "distance")
    config: NoveltyConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        return np.dtype([("seen", "<i4"), ("recent", "<f8", (LONGEST_BLOCK,)), ("memory", MEMORY)])

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        _run(cells, rows, values, self.config.warmup, self.config.block, raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        return words(evidence["now"], evidence["distance"], evidence["nearest"], evidence["n"])


def words(now: float, distance: float, like: float, n: float) -> str:
    """Say how far a value is from the nearest remembered one, `like`; 0 where nobody looked it up."""
    whom = f"{like:.6g}, the nearest" if like else "the nearest"
    return f"{now:.6g} is {distance:.3g} from {whom} of the last {n:,.0f} values"
