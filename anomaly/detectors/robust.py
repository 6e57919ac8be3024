"""Distance from a streaming median, in units of a streaming MAD.

What it finds: spikes and jumps, also where a good part of the past was strange itself: up to half of the
sample may be wild before median and MAD (median absolute deviation) give way, where one spike is enough to
blind a mean and a standard deviation. When it misleads: a rhythm that is long against `horizon` looks
strange on every slope; of two modes the rarer one is always far away; a slow drift is followed.

For each sensor and field a sorted sample of 64 past readings is kept. Once it is full, one reading in
horizon / 64 takes the place of one of the sample, both chosen by a hash of the reading's number: so the
sample's ages are those of an exponential window of `horizon` readings, without a rhythm of its own.

    raw score = |x - median| / (1.4826 MAD)          standard deviations, if the past is Gaussian

Where more than half of the sample is one value the MAD is 0, and 1.2533 times the mean absolute deviation
stands for it; where all of it is one value, 1e-6 of that value.

Cost: about 0.1 us a reading and field, calibration included, at the default horizon.

Source: B. Iglewicz, D. Hoaglin, "How to detect and handle outliers" (1993), for the modified z-score and what
to do where the MAD is 0. The sample: C. Aggarwal, "On biased reservoir sampling in the presence of stream
evolution" (VLDB 2006).

    >>> import numpy as np
    >>> detector = RobustDetector(RobustConfig(), ("temperature",))
    >>> rows, ts = np.zeros(300, np.int32), np.arange(300.0)
    >>> values = 20 + np.sin(np.arange(300.0))[:, None]
    >>> values[299] += 50
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> explain(299, 0).partition(";")[0]
    '43.5 robust sd above the usual 20.1 ± 1.1'
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.compiled import compiled
from anomaly.detectors.ewz import number
from anomaly.detectors.frame import CellConfig, CellDetector

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray

#: Readings in the sample.
SAMPLE = 64
#: From MAD and from mean absolute deviation to the standard deviation of a Gaussian.
FROM_MAD = 1.4826
FROM_MEAN = 1.2533
#: The scale is at least this share of the median, and never 0.
RESOLUTION = 1e-6
LEAST = 1e-100


class RobustConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `robust`.

    Args:
        horizon: the mean age of what median and MAD are taken over, in readings.
    """

    horizon: int = 1000

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if not SAMPLE <= self.horizon <= 10_000_000:
            faults["horizon"] = f"{self.horizon} is not in [{SAMPLE}, 10000000]"
        return faults


@compiled
def hashed(n: int) -> int:
    """Return 32 bits that look random but depend on n alone (Murmur3's finaliser)."""
    h = n & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


@compiled
def _summarise(cell: Any, size: int) -> None:
    """Set median and scale from the first `size` of the sorted sample."""
    sample = cell.sample
    median = 0.5 * (sample[(size - 1) // 2] + sample[size // 2])
    # deviations in rising order: the two sides of the median merged
    below, above = (size - 1) // 2, (size - 1) // 2 + 1
    lower, upper, mean = 0.0, 0.0, 0.0
    for rank in range(size):
        left = median - sample[below] if below >= 0 else math.inf
        right = sample[above] - median if above < size else math.inf
        if left <= right:
            deviation = left
            below -= 1
        else:
            deviation = right
            above += 1
        mean += deviation / size
        if rank == (size - 1) // 2:
            lower = deviation
        if rank == size // 2:
            upper = deviation
    mad = 0.5 * (lower + upper)
    scale = FROM_MAD * mad if mad > 0.0 else FROM_MEAN * mean
    cell.median = median
    cell.scale = max(scale, RESOLUTION * abs(median), LEAST)


@compiled
def _learn(cell: Any, x: float, horizon: int) -> None:
    sample = cell.sample
    if cell.n < SAMPLE:
        size = cell.n
        hole = size
        size += 1
    else:
        size = SAMPLE
        if hashed(2 * cell.n) >= (SAMPLE << 32) // horizon:
            return
        hole = hashed(2 * cell.n + 1) % SAMPLE
    # the hole moves to where x belongs
    while hole > 0 and sample[hole - 1] > x:
        sample[hole] = sample[hole - 1]
        hole -= 1
    while hole < size - 1 and sample[hole + 1] < x:
        sample[hole] = sample[hole + 1]
        hole += 1
    sample[hole] = x
    _summarise(cell, size)


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    warmup: int,
    horizon: int,
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
            if cell.n >= warmup:
                raw[i, j] = abs(x - cell.median) / cell.scale
                why[i, j, 0] = x
                why[i, j, 1] = cell.median
                why[i, j, 2] = cell.scale
            _learn(cell, x, horizon)
            cell.n += 1


class RobustDetector(CellDetector):
    """See the module."""

    name: ClassVar[str] = "robust"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = RobustConfig
    evidence: ClassVar[tuple[str, ...]] = ("now", "median", "scale")
    config: RobustConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        return np.dtype([("n", "<i8"), ("median", "<f8"), ("scale", "<f8"), ("sample", "<f8", (SAMPLE,))])

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        _run(cells, rows, values, self.config.warmup, self.config.horizon, raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        now, median, scale = evidence["now"], evidence["median"], evidence["scale"]
        side = "above" if now >= median else "below"
        away = f"{abs(now - median) / scale:.1f} robust sd"
        return f"{away} {side} the usual {number(median, scale)} ± {number(scale, scale)}"
