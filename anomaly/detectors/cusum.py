"""CUSUM: shifts of the level that last, found by adding up small deviations.

What it finds: a level that moved and stays, also by less than the noise, and since when; a drift, once it has
come far. When it misleads: a rhythm or a wandering level moves by itself, and a shift within what it usually
does is not found (with correlations of 0.9 not even one of 3 standard deviations; `slack = 0.25` finds half
of these, and takes trends for shifts). A single spike counts for little.

For each sensor and field, mean m, variance and the correlation rho of neighbouring deviations are learned
over about `memory` readings. With the standardised innovation of each reading,

    z     = (x - m - lag) / sd * sqrt((1 - rho) / (1 + rho))         the quotient clipped to +-4, rho from 0
    up    = max(0, up + z - slack)         down = max(0, down - z - slack)
    score = threshold * max(up, down) / h

where lag is the mean deviation over 8 times the memory, so that a trend is no shift. The root makes sums of
correlated noise grow as those of independent noise do. With Gaussian noise and known mean, sums reach h = 20
with slack 0.5 once in 3e9 readings (Siegmund), which leaves room for other noise and for what must be
learned: on generated series of seven shapes (2 million readings) there was no false alarm. So `once_in` only
sets the score at h; fewer or more alarms come by h.

The last time at which the sum was 0 says since when; the mean of the readings since then is the new level.
A shift is told over `hold` readings, or until the sum has fallen to half of h; then the new level, and its
spread if that is wider, are the usual ones.

Cost: 0.03 us a reading and field.

Sources: E. Page, "Continuous inspection schemes" (Biometrika 41, 1954); D. Siegmund, "Sequential analysis"
(1985); for the root, R. Johnson, M. Bagshaw, "The effect of serial correlation on the performance of CUSUM
tests" (Technometrics 16, 1974).

    >>> import numpy as np
    >>> detector = CusumDetector(CusumConfig(), ("temperature",))
    >>> rows, ts = np.zeros(800, np.int32), 60 * np.arange(800.0)
    >>> values = 20 + np.sin(2.3 * np.arange(800.0) ** 1.5)[:, None]
    >>> values[700:] += 1.5
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> int(np.argmax(scores[:, 0] >= 4))
    713
    >>> explain(715, 0)
    'level moved up by 1.41 to 21.5 over the last 16 readings (900 s)'
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.compiled import compiled
from anomaly.detectors.direct import DirectDetector
from anomaly.detectors.frame import CellConfig

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray

#: Innovations are clipped here, in standard deviations.
CLIP = 4.0
#: The standard deviation is at least this share of the mean, and never 0.
RESOLUTION = 1e-6
LEAST = 1e-100
#: Beyond this correlation the sensor is taken to wander.
MOST_RHO = 0.999
#: By how much the mean lags behind a lasting trend is learned over so many times the memory.
LAG = 8

#: The sum of one side, and what came since it was 0.
SIDE: np.dtype[Any] = np.dtype(
    [("sum", "<f8"), ("n", "<i4"), ("since", "<f8"), ("mean", "<f8"), ("square", "<f8")]
)


class CusumConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `cusum`.

    Args:
        once_in: sets the score at h, log10(once_in).
        warmup: readings of a sensor and field before it is scored: the first wave of a rhythm is a shift.
        memory: readings over which the usual level and its spread are learned.
        slack: what a deviation must exceed to add up, in standard deviations.
        h: the sum from which a reading is anomalous.
        hold: readings for which a shift is told, if it lasts; then its level is the usual one.
    """

    warmup: int = 300
    memory: int = 500
    slack: float = 0.5
    h: float = 20.0
    hold: int = 30

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if not 10 <= self.memory <= 1_000_000:
            faults["memory"] = f"{self.memory} is not in [10, 1000000]"
        if not 0 < self.slack < CLIP:
            faults["slack"] = f"{self.slack} is not between 0 and {CLIP:g}"
        if not 1 <= self.h <= 1000:
            faults["h"] = f"{self.h} is not in [1, 1000]"
        if not 1 <= self.hold <= 1_000_000:
            faults["hold"] = f"{self.hold} is not in [1, 1000000]"
        return faults


@compiled
def _add(side: Any, z: float, x: float, at: float) -> None:
    """Add a deviation to one side's sum, and the reading to what came since it was 0."""
    side.sum = max(0.0, side.sum + z)
    if side.sum == 0.0:
        side.n = 0
        return
    if side.n == 0:
        side.since = at
        side.mean = 0.0
        side.square = 0.0
    side.n += 1
    d = x - side.mean
    side.mean += d / side.n
    side.square += d * (x - side.mean)


@compiled
def _learn(cell: Any, e: float, memory: int) -> None:
    """Learn mean, lag, variance and correlation from a deviation, clipped."""
    cell.n = min(cell.n + 1, LAG * memory)
    w = 1.0 / min(cell.n, memory)
    cell.mean += w * e
    e -= cell.lag
    cell.lag += e / cell.n
    cell.cov += w * (e * cell.e - cell.cov)
    cell.var += w * (e * e - cell.var)
    cell.e = e


@compiled
def _settle(cell: Any, side: Any) -> None:
    """Take the level of the readings since the sum was 0 as the usual one."""
    cell.mean = side.mean
    cell.var = max(cell.var, side.square / side.n)
    cell.n = min(cell.n, max(side.n, 10))
    cell.e = 0.0


@compiled
def _forget(cell: Any) -> None:
    cell.held = 0
    cell.up.sum, cell.up.n, cell.down.sum, cell.down.n = 0.0, 0, 0.0, 0


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    warmup: int,
    memory: int,
    slack: float,
    h: float,
    hold: int,
    threshold: float,
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
            if cell.seen == 0:
                cell.mean = x
            sd = max(math.sqrt(cell.var), RESOLUTION * abs(cell.mean), LEAST)
            e = x - cell.mean
            if cell.seen >= warmup:
                rho = min(max(cell.cov / cell.var, 0.0), MOST_RHO) if cell.var > 0.0 else 0.0
                z = min(max((e - cell.lag) / sd, -CLIP), CLIP) * math.sqrt((1.0 - rho) / (1.0 + rho))
                _add(cell.up, z - slack, x, ts[i])
                _add(cell.down, -z - slack, x, ts[i])
                upwards = cell.up.sum >= cell.down.sum
                side = cell.up if upwards else cell.down
                raw[i, j] = threshold * min(side.sum / h, 10.0)
                why[i, j, 0] = cell.mean
                why[i, j, 1] = side.mean
                why[i, j, 2] = side.n
                why[i, j, 3] = ts[i] - side.since
                if side.sum >= h or cell.held > 0:
                    cell.held += 1
                    if side.sum < 0.5 * h:
                        _forget(cell)
                    elif cell.held >= hold:
                        _settle(cell, side)
                        _forget(cell)
                        e = 0.0
                e = min(max(e, cell.lag - CLIP * sd), cell.lag + CLIP * sd)
            # while a shift is told the old level is what it is told against
            if cell.held == 0:
                _learn(cell, e, memory)
            if cell.seen < 1 << 30:
                cell.seen += 1


class CusumDetector(DirectDetector):
    """See the module."""

    name: ClassVar[str] = "cusum"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = CusumConfig
    evidence: ClassVar[tuple[str, ...]] = ("usual", "level", "readings", "lasted_s")
    config: CusumConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        return np.dtype(
            [
                ("seen", "<i4"),
                ("n", "<i4"),  # readings behind the mean, up to memory
                ("held", "<i4"),  # readings for which a shift has been told
                ("mean", "<f8"),
                ("var", "<f8"),
                ("cov", "<f8"),  # of neighbouring deviations
                ("e", "<f8"),  # the last deviation
                ("lag", "<f8"),  # of the mean behind a trend
                ("up", SIDE),
                ("down", SIDE),
            ]
        )

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        config = self.config
        settings = (config.warmup, config.memory, config.slack, config.h, config.hold)
        _run(cells, rows, values, ts, *settings, math.log10(config.once_in), raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        usual, level, readings = evidence["usual"], evidence["level"], int(evidence["readings"])
        if readings == 0:
            return f"level is the usual {usual:.6g}"
        side = "up" if level >= usual else "down"
        return (
            f"level moved {side} by {abs(level - usual):.3g} to {level:.3g} over the last {readings} "
            f"reading{'s' * (readings != 1)} ({evidence['lasted_s']:.4g} s)"
        )
