"""Value novelty: how far a value is from the nearest of everything that the sensor remembers.

What it finds: values that were never met, whether beyond all others or in a gap between them, without any
model of level, rhythm or distribution. It asks only "was there anything like it?", so a repeating pattern,
however odd its shape, is usual as soon as it was met once; a new regime is strange for one reading. When it
misleads: a value that is usual in itself, but not at this hour or after the one before, is not seen
(`seasonal` and `knn` see those); a slow drift makes every new extreme a little strange.

For each sensor and field, with the trailing mean b of the last `block` values and the means b_s of blocks
that ended before it began, at most 2,944 of them: raw score = min |b - b_s| / spread, spread being the mean
distance of the values from their mean.

Cost: 0.4 us a reading and field, 6.7 KB a sensor and field. Related: conformal anomaly detection by the
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
from anomaly.detectors.memory import HORIZON, MEMORY, clip, relative, remember, unfold

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray
    from anomaly.detectors.memory import Line

LONGEST_BLOCK = 16


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
def neighbours(line: Line, n: int, x: float) -> tuple[float, float]:
    """Return the largest of the first n values at or below x, and the smallest at or above; +-3e38: none."""
    target = np.float32(x)
    below, above = np.float32(-3e38), np.float32(3e38)
    for i in range(n):
        value = line[i]
        below = max(below, value if value <= target else np.float32(-3e38))
        above = min(above, value if value >= target else np.float32(3e38))
    return float(below), float(above)


@compiled
def nearest(line: Line, n: int, x: float) -> float:
    """Return the nearest of the first n values to x; n is at least 1."""
    below, above = neighbours(line, n, x)
    return below if x - below < above - x else above


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
    line = np.empty(HORIZON, np.float32)
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
                like = nearest(line, n, x)
                raw[i, j] = relative(abs(x - like), memory.scale)
                why[i, j, 0], why[i, j, 1], why[i, j, 2] = x, like, n
            remember(memory, x)


class NoveltyDetector(CellDetector):
    """See the module."""

    name: ClassVar[str] = "novelty"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = NoveltyConfig
    evidence: ClassVar[tuple[str, ...]] = ("now", "nearest", "n")
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
        return words(evidence["now"], evidence["nearest"], evidence["n"])


def words(now: float, like: float, n: float) -> str:
    """Say how far a value is from the nearest remembered one."""
    return f"{now:.6g} is {abs(now - like):.3g} from {like:.6g}, the nearest of the last {n:,.0f} values"
