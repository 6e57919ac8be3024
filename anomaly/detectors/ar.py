"""Autoregressive residual: how far a value is from what the eight before it foretell.

What it finds: spikes, jumps, odd shapes and a changed rhythm in values that hang together: what is strange is
what the recent past does not lead to, whatever the level. When it misleads: where values don't hang together
the forecast is their mean, and a spread would do; a slow drift is foretold by its own past; a rhythm that is
slow against eight readings looks like a trend.

For each sensor and field the next value is foretold from an intercept and the last 8 values, by recursive
least squares that forget with 0.998 (500 readings). With the residual r = |x - forecast|, its mean over
`short` readings and its usual mean and deviation over 1,000:

    z         = (short mean - usual mean) / usual deviation
    raw score = -log10 Q(z)                  Q the upper tail of the normal distribution

as Ahmad et al. turn prediction errors into a likelihood. Lags and model are cleaned of anomalies: a value
further than 4 deviations from its forecast is learned as if it had been there, except after 8 in a row; in
the short means of later readings it counts no more than that either.

Cost: 0.3 us a reading and field.

Sources: S. Ahmad, A. Lavin, S. Purdy, Z. Agha, "Unsupervised real-time anomaly detection for streaming data"
(Neurocomputing 262, 2017); S. Haykin, "Adaptive filter theory" (2002), for recursive least squares.

    >>> import numpy as np
    >>> detector = ArDetector(ArConfig(), ("temperature",))
    >>> rows, ts = np.zeros(800, np.int32), np.arange(800.0)
    >>> values = 20 + np.sin(np.arange(800.0) / 3)[:, None] + 0.1 * np.cos(np.arange(800.0) ** 2)[:, None]
    >>> values[700] += 1
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> explain(700, 0).partition(";")[0]
    '21.8431 is 1.05 above the forecast 20.7893, the last 3 were 0.384 off, usual is 0.0702'
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.compiled import compiled
from anomaly.detectors.frame import CellConfig, CellDetector
from anomaly.detectors.memory import SCALE, clip, settle

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray

#: Values that the forecast is made of; with the intercept, the size of the model.
ORDER = 8
SIZE = ORDER + 1
FORGET = 0.998
#: The covariance of the coefficients begins here; above this trace nothing is forgotten, else it would grow
#: without end where values stand still.
PRIOR = 10.0
MOST_TRACE = 1e4
#: Readings over which the usual residual is learned, and how far from the usual one may count, in deviations.
LONG = 1000
LONG_CLIP = 6.0
#: Values further from their forecast are cleaned, up to so many in a row.
CLEAN = 4.0
MOST_CLEANED = 8
#: Scaled values and their residuals end here.
FURTHEST = 1e6
#: The deviation of residuals is at least this, in spreads of the value.
LEAST = 1e-6
MOST_Z = 60.0


class ArConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `ar`.

    Args:
        short: residuals whose mean is compared with the usual one; 1 for spikes alone.
    """

    warmup: int = 150
    short: int = 3

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if self.warmup < 2 * SIZE:
            faults["warmup"] = f"{self.warmup} is less than {2 * SIZE}"
        if not 1 <= self.short <= 64:
            faults["short"] = f"{self.short} is not in [1, 64]"
        return faults


@compiled
def likelihood(z: float) -> float:
    """Return -log10 Q(z), the upper tail of the normal distribution, for z up to MOST_Z."""
    if z < 8.0:
        return -math.log10(0.5 * math.erfc(z / math.sqrt(2.0)))
    z = min(z, MOST_Z)
    # erfc ends at 1e-308
    beyond = 0.5 * z * z + math.log(z * math.sqrt(2.0 * math.pi)) - math.log(1.0 - 1.0 / (z * z))
    return float(beyond / math.log(10.0))


@compiled
def _least_squares(cell: Any, gain: FloatArray, residual: float) -> None:
    """Move the coefficients by a residual; `gain` is room for SIZE numbers."""
    cov, lags = cell.cov, cell.lags
    quadratic, trace = 0.0, 0.0
    for a in range(SIZE):
        total = 0.0
        for b in range(SIZE):
            total += cov[a, b] * lags[b]
        gain[a] = total
        quadratic += total * lags[a]
        trace += cov[a, a]
    if not 0.0 <= quadratic < math.inf:
        # rounding has spoiled it: begin anew, with the coefficients as they are
        for a in range(SIZE):
            for b in range(SIZE):
                cov[a, b] = PRIOR if a == b else 0.0
        return
    forget = FORGET if trace < MOST_TRACE else 1.0
    share = 1.0 / (forget + quadratic)
    for a in range(SIZE):
        cell.model[a] += gain[a] * share * residual
        for b in range(SIZE):
            cov[a, b] = (cov[a, b] - gain[a] * gain[b] * share) / forget


@compiled
def _begin(cell: Any) -> None:
    for a in range(SIZE):
        cell.cov[a, a] = PRIOR
    cell.lags[ORDER] = 1.0


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    warmup: int,
    short: int,
    gain: FloatArray,
    raw: FloatArray,
    why: FloatArray,
) -> None:
    for i in range(rows.shape[0]):
        for j in range(values.shape[1]):
            if values[i, j] != values[i, j]:
                raw[i, j] = math.nan
                continue
            cell = cells[rows[i], j]
            x = clip(values[i, j])
            if cell.n == 0:
                _begin(cell)
            settle(cell.scale, x)
            spread, mean = cell.scale.spread, cell.scale.mean
            u = min(max((x - mean) / spread, -FURTHEST), FURTHEST) if spread > 0.0 else 0.0
            forecast = 0.0
            for a in range(SIZE):
                forecast += cell.model[a] * cell.lags[a]
            forecast = min(max(forecast, -FURTHEST), FURTHEST)
            residual = u - forecast
            size = abs(residual)
            deviation = max(math.sqrt(cell.var), LEAST)

            cell.recent[cell.n % short] = size
            if cell.n >= warmup:
                total = 0.0
                for k in range(short):
                    total += cell.recent[k]
                raw[i, j] = likelihood((total / short - cell.usual) / deviation)
                why[i, j, 0], why[i, j, 1] = x, mean + spread * forecast
                why[i, j, 2], why[i, j, 3] = spread * total / short, spread * cell.usual

            if cell.n >= ORDER:
                known = min(cell.n - ORDER + 1, LONG)
                furthest = cell.usual + LONG_CLIP * deviation
                counted = min(size, furthest) if known > ORDER else size
                d = counted - cell.usual
                cell.usual += d / known
                cell.var += (d * (counted - cell.usual) - cell.var) / known
                # in deviations of the residual itself, not of its size
                within = CLEAN * math.sqrt(cell.var + cell.usual * cell.usual)
                cell.cleaned = cell.cleaned + 1 if size > within and cell.n >= warmup else 0
                if cell.cleaned > 0:
                    # one spike is told, and counted by the calibration, once
                    cell.recent[cell.n % short] = within
                # many in a row: the values are elsewhere for good, and learned as they are
                if 0 < cell.cleaned <= MOST_CLEANED:
                    residual = math.copysign(within, residual)
                    u = forecast + residual
                _least_squares(cell, gain, residual)
            for a in range(ORDER - 1, 0, -1):
                cell.lags[a] = cell.lags[a - 1]
            cell.lags[0] = u
            cell.n += 1


class ArDetector(CellDetector):
    """See the module."""

    name: ClassVar[str] = "ar"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = ArConfig
    evidence: ClassVar[tuple[str, ...]] = ("now", "forecast", "short", "usual")
    config: ArConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        return np.dtype(
            [
                ("n", "<i8"),
                ("cleaned", "<i4"),  # values in a row that were far from their forecast
                ("scale", SCALE),
                ("usual", "<f8"),  # mean and variance of the size of residuals, in spreads
                ("var", "<f8"),
                ("lags", "<f8", (SIZE,)),  # newest first; the last is 1, of the intercept
                ("model", "<f8", (SIZE,)),
                ("cov", "<f8", (SIZE, SIZE)),
                ("recent", "<f8", (self.config.short,)),
            ]
        )

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        _run(cells, rows, values, self.config.warmup, self.config.short, np.empty(SIZE), raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        now, forecast = evidence["now"], evidence["forecast"]
        side = "above" if now >= forecast else "below"
        return (
            f"{now:.6g} is {abs(now - forecast):.3g} {side} the forecast {forecast:.6g}, the last "
            f"{self.config.short} were {evidence['short']:.3g} off, usual is {evidence['usual']:.3g}"
        )
