"""Seasonal residual: how far a value is from what is usual at this hour of the week.

What it finds: values that are usual in themselves, but not now: machines that run at night, a school that is
warm on a Sunday, a peak that does not come. When it misleads: holidays; a rhythm that is no part of a day or
week, unless `period_s` names it; the first week, in which nothing is known of an hour that was not met yet.
Times are UTC: an hour of summer time shifts the rhythm for some days.

For each sensor and field a mean m is kept for each slot of the period (168 hours of a week), and, in case the
days are alike, for each of the same hours of a day. Which of them is used is settled by the sensor: the one
whose residuals have lately been smaller. With slot mean m and the mean distance of values from their mean as
spread:

    raw score = |x - m| / spread        once the slot was met
    m = m + w (x - m)                   w = max(alpha, 1 / times that the slot was met)

Cost: 0.1 us a reading and field, 2.1 KB a sensor and field.

    >>> import numpy as np
    >>> detector = SeasonalDetector(SeasonalConfig(), ("temperature",))
    >>> hours = np.arange(24 * 30.0)
    >>> values = 20 + 5 * (hours % 24 > 12)[:, None]
    >>> values[712] = 20
    >>> scores, explain = detector.examine(detector.init(1), np.zeros(720, np.int32), values, hours * 3600)
    >>> explain(712, 0).partition(";")[0]
    '20 is 5 below the usual 25 of Fridays 16 h UTC'
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.compiled import compiled
from anomaly.detectors.frame import CellConfig, CellDetector
from anomaly.detectors.memory import SCALE, clip, relative, settle

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray

DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
#: 1970-01-01 was a Thursday.
DAYS = ("Thursdays", "Fridays", "Saturdays", "Sundays", "Mondays", "Tuesdays", "Wednesdays")
SLOTS = 168
DAY_SLOTS = 24
#: A slot's visits are counted up to here; the weight is alpha before.
VISITS = 250
#: Weight of a new residual in the means that choose between week and day.
FADE = 0.005

SEASON: np.dtype[Any] = np.dtype(
    [
        ("week", "<f4", (SLOTS,)),
        ("week_met", "u1", (SLOTS,)),
        ("day", "<f4", (DAY_SLOTS,)),
        ("day_met", "u1", (DAY_SLOTS,)),
        ("week_error", "<f4"),  # mean |residual| by the week's slots where both were known
        ("day_error", "<f4"),
    ]
)


class SeasonalConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `seasonal`.

    Args:
        warmup: readings of a sensor and field before it is scored. alpha: weight of a new value in the mean
        of its slot, 0 < alpha <= 1. period_s: length of the period in seconds; a week by default. It has 168
        slots, and its seventh part 24.
    """

    warmup: int = 150
    alpha: float = 0.1
    period_s: float = WEEK_S

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if not 1 / VISITS <= self.alpha <= 1:
            faults["alpha"] = f"{self.alpha} is not in [{1 / VISITS}, 1]"
        if not 1 <= self.period_s <= 1e10:
            faults["period_s"] = f"{self.period_s} is not in [1, 1e10]"
        return faults


@compiled
def slot_of(ts: float, period_s: float, slots: int) -> int:
    """Return the slot of a time within its period, 0 to slots - 1."""
    return math.floor(ts / (period_s / slots)) % slots


@compiled
def usual(season: Any, ts: float, period_s: float) -> tuple[float, bool]:
    """Return what is usual at a time, NaN where nothing is known, and whether the day's slots say so."""
    w = slot_of(ts, period_s, SLOTS)
    d = slot_of(ts, period_s / 7.0, DAY_SLOTS)
    by_week = season.week_met[w] > 0
    by_day = season.day_met[d] > 0
    if by_week and (not by_day or season.week_error <= season.day_error):
        return float(season.week[w]), False
    return (float(season.day[d]), True) if by_day else (math.nan, False)


@compiled
def visit(season: Any, ts: float, x: float, alpha: float, period_s: float) -> None:
    """Learn a value at a time."""
    w = slot_of(ts, period_s, SLOTS)
    d = slot_of(ts, period_s / 7.0, DAY_SLOTS)
    if season.week_met[w] > 0 and season.day_met[d] > 0:
        season.week_error += FADE * (abs(x - season.week[w]) - season.week_error)
        season.day_error += FADE * (abs(x - season.day[d]) - season.day_error)
    season.week_met[w] = min(season.week_met[w] + 1, VISITS)
    season.day_met[d] = min(season.day_met[d] + 1, VISITS)
    season.week[w] += max(alpha, 1.0 / season.week_met[w]) * (x - season.week[w])
    season.day[d] += max(alpha, 1.0 / season.day_met[d]) * (x - season.day[d])


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    warmup: int,
    alpha: float,
    period_s: float,
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
            if cell.seen >= warmup:
                expected, by_day = usual(cell.season, ts[i], period_s)
                if expected == expected:
                    raw[i, j] = relative(abs(x - expected), cell.scale)
                    why[i, j, 0], why[i, j, 1], why[i, j, 2], why[i, j, 3] = x, expected, by_day, ts[i]
            settle(cell.scale, x)
            cell.seen = min(cell.seen + 1, 1 << 30)
            visit(cell.season, ts[i], x, alpha, period_s)


class SeasonalDetector(CellDetector):
    """See the module."""

    name: ClassVar[str] = "seasonal"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = SeasonalConfig
    evidence: ClassVar[tuple[str, ...]] = ("now", "usual", "by_day", "ts")
    config: SeasonalConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        return np.dtype([("seen", "<i4"), ("scale", SCALE), ("season", SEASON)])

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        config = self.config
        _run(cells, rows, values, ts, config.warmup, config.alpha, config.period_s, raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        return words(
            evidence["now"], evidence["usual"], evidence["ts"], bool(evidence["by_day"]), self.config.period_s
        )


def words(now: float, expected: float, ts: float, by_day: bool, period_s: float = WEEK_S) -> str:
    """Say how far a value is from what is usual at its time."""
    side = "below" if now < expected else "above"
    if period_s == WEEK_S:
        hour = int(ts % DAY_S // 3600)
        when = f"at {hour} h UTC" if by_day else f"of {DAYS[int(ts % WEEK_S // DAY_S)]} {hour} h UTC"
    else:
        length = period_s / 7 if by_day else period_s
        when = f"at {ts % length:.3g} s of {length:.6g} s"
    return f"{now:.6g} is {abs(now - expected):.3g} {side} the usual {expected:.6g} {when}"
