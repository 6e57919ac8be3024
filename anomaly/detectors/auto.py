"""The default: three detectors that see different things, weighed for each sensor, in one pass.

`novelty` (was there ever such a value?), `knn` (such a run of values?) and `seasonal` (at this hour?) share
one memory of the sensor. Each one's raw score is calibrated to a surprise s_i in decades
(`anomaly.calibration`), and the surprise of the reading is their weighted quadratic mean, so that one member
alone has to be very sure, while two that agree are heard early:

    score = 1.3 sqrt(sum w_i s_i^2 / sum w_i)

What it finds: spikes, level shifts, values in gaps, odd shapes, missing peaks, values at the wrong hour;
mostly one alarm for an event, since what was met is known from then on. When it misleads: see the members. A
lasting fault is strange when it begins, not while it lasts; `stuck`, limits and drift see
what lasts.

**What it picks.** Members come in the order of what they add, as long as the sum of their costs stays within
`budget_us`. When a sensor has warmed up, and every 1,024 readings from then on, its members are weighed:
`knn` counts three quarters where values hardly depend on those before (noise has no shapes), `seasonal` where
the season explains hardly anything. `describe` says what was picked, and why.

**After an alarm** a reading counts in full only if it is stranger than the last alarm, for the next 20
readings; else its score is less than a third. One event is one alarm.

**The threshold** is a rate of alarms on a sensor without faults: once in `once_in` readings, and not more
often than once in `once_in_days`; for a sensor that sends faster than that, decades are scaled down. The
quadratic mean is no tail probability itself: 1.3 times it is what was met on series of nine kinds without
faults (white, t, exponential and autoregressive noise, daily rhythms, coarse steps). There a score of 1 to 4
came once in 10^score readings within 0.5 decades; on strong daily rhythms and coarse steps up to 0.9 more
rarely.

Cost: 1.6 us a reading and field at 10,000 sensors with full memories, 7.9 KB a sensor and field.

    >>> import numpy as np
    >>> detector = AutoDetector(AutoConfig(), ("temperature",))
    >>> rows, ts = np.zeros(500, np.int32), np.arange(500.0)
    >>> values = 20 + np.sin(np.arange(500.0))[:, None]
    >>> values[499] = 24
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> explain(499, 0).replace(explain(499, 0).partition("values, and ")[2], "...")
    '24 is 3 from 21, the nearest of the last 499 values, and ...'
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.calibration import TAIL, surprise
from anomaly.compiled import compiled
from anomaly.detector import thresholds_of
from anomaly.detectors import knn, novelty, seasonal
from anomaly.detectors.frame import HUGE, CellConfig
from anomaly.detectors.memory import HORIZON, MEMORY, clip, relative, remember, unfold
from anomaly.detectors.seasonal import DAY_S, SEASON, WEEK_S

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, Explain, FloatArray, RowArray, StateArray

NOVELTY, KNN, SEASONAL = 0, 1, 2
MEMBERS = ("novelty", "knn", "seasonal")
#: Microseconds a reading and field, in the order in which members are picked; `novelty` pays for unfolding
#: the memory.
COSTS_US = {NOVELTY: 0.7, SEASONAL: 0.15, KNN: 0.65}
#: Values in a run of `knn`, weight of a new value in a slot of `seasonal`.
WINDOW = 4
ALPHA = 0.1
#: Readings between two looks at the weights.
REVIEW = 1024
#: A weight of little use, and the share of autocorrelation or season from which it is full.
LITTLE = 0.75
ENOUGH = 0.1
#: Decades to a quadratic mean of surprises, as met on series without faults.
DECADES = 1.3
#: After an alarm of at least ALARM decades, so many readings are held down to HELD of their score.
ALARM = 2.6
HOLD = 20
HELD = 0.3
#: Decades from which the nearest value is looked up for the explanation.
EXPLAINED = 1.5
CELL: np.dtype[Any] = np.dtype(
    [
        ("weights", "<f4", (len(MEMBERS),)),
        ("mean", "<f8"),  # slow exponentially weighted means: of values,
        ("distance", "<f8"),  # of |x - mean|,
        ("residual", "<f8"),  # of |x - usual of the season|,
        ("square", "<f8"),  # of (x - mean)^2,
        ("product", "<f8"),  # of (x - mean) (x' - mean) with the value x' before
        ("last", "<f8"),  # x' - mean
        ("ts", "<f8"),  # of the last reading
        ("gap_s", "<f8"),  # slow mean of the time between readings
        ("alarm", "<f4"),  # the score of the last alarm
        ("hold", "<i4"),  # readings for which it still holds others down
        ("memory", MEMORY),
        ("season", SEASON),
    ]
)


class AutoConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `auto`.

    Args:
        once_in: a reading is anomalous when one so strange comes once in so many readings without faults,
            or more rarely,
        once_in_days: and once in so many days; 0 for readings alone.
        warmup: readings of a sensor and field before it is scored.
        budget_us: microseconds that a reading and field may cost on one core; members are picked within it.
        period_s: length of the season in seconds, a week by default; see `seasonal`.
    """

    once_in: float = 300.0
    once_in_days: float = 2.0
    warmup: int = 150
    budget_us: float = 3.0
    period_s: float = WEEK_S

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if self.warmup < 4 * WINDOW:
            faults["warmup"] = f"{self.warmup} is less than {4 * WINDOW}"
        if not COSTS_US[NOVELTY] <= self.budget_us <= 1e6:
            faults["budget_us"] = f"{self.budget_us} is not in [{COSTS_US[NOVELTY]}, 1000000]"
        if not 0 <= self.once_in_days <= 1e6:
            faults["once_in_days"] = f"{self.once_in_days} is not in [0, 1000000]"
        if not 1 <= self.period_s <= 1e10:
            faults["period_s"] = f"{self.period_s} is not in [1, 1e10]"
        return faults


@compiled
def _watch(cell: Any, x: float, expected: float) -> None:
    """Learn what the weights are made of."""
    weight = max(1e-3, 1.0 / (cell.memory.seen + 1.0))
    away = x - cell.mean
    cell.distance += weight * (abs(away) - cell.distance)
    if expected == expected:
        cell.residual += weight * (abs(x - expected) - cell.residual)
    cell.square += weight * (away * away - cell.square)
    cell.product += weight * (away * cell.last - cell.product)
    cell.mean += weight * away
    cell.last = x - cell.mean


@compiled
def _weigh(cell: Any) -> None:
    """Set the weights of the members by what the sensor's values are like."""
    shapes = abs(cell.product) / cell.square if cell.square > 0.0 else 0.0
    season = 1.0 - cell.residual / cell.distance if cell.distance > 0.0 else 0.0
    cell.weights[NOVELTY] = 1.0
    cell.weights[KNN] = LITTLE + (1.0 - LITTLE) * min(max(shapes, 0.0) / ENOUGH, 1.0)
    cell.weights[SEASONAL] = LITTLE + (1.0 - LITTLE) * min(max(season, 0.0) / ENOUGH, 1.0)


@compiled
def _pace(cell: Any, ts: float) -> None:
    """Learn the time between readings."""
    gap_s = ts - cell.ts
    if cell.memory.seen > 0 and gap_s > 0.0:
        cell.gap_s += max(1e-3, 1.0 / cell.memory.seen) * (min(gap_s, DAY_S) - cell.gap_s)
    cell.ts = ts


@compiled
def _run(
    cells: Any,
    tails: Any,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    warmup: int,
    period_s: float,
    once_in: float,
    once_in_s: float,
    picked: FloatArray,
    scores: FloatArray,
    parts: FloatArray,
    why: FloatArray,
) -> None:
    line, work = np.empty(HORIZON, np.float32), np.empty(HORIZON, np.float32)
    surprises = np.empty(3)
    for i in range(rows.shape[0]):
        for j in range(values.shape[1]):
            if values[i, j] != values[i, j]:
                scores[i, j] = math.nan
                continue
            cell = cells[rows[i], j]
            memory = cell.memory
            x = clip(values[i, j])
            expected, by_day = seasonal.usual(cell.season, ts[i], period_s)
            if memory.seen >= warmup:
                if memory.seen == warmup or memory.seen % REVIEW == 0:
                    _weigh(cell)
                n = unfold(memory, line)
                new = novelty.distance_to_nearest(line, n, x, work)
                surprises[NOVELTY] = surprise(tails[rows[i], j, NOVELTY], relative(new, memory.scale))
                if surprises[NOVELTY] > EXPLAINED:
                    why[i, j, 1] = novelty.nearest(line, n, x)
                distance = 0.0
                surprises[KNN] = 0.0
                if picked[KNN] > 0.0:
                    distance = knn.nearest_four(line, n, x, work)
                    surprises[KNN] = surprise(tails[rows[i], j, KNN], relative(distance, memory.scale))
                surprises[SEASONAL] = 0.0
                if picked[SEASONAL] > 0.0 and expected == expected:
                    away = relative(abs(x - expected), memory.scale)
                    surprises[SEASONAL] = surprise(tails[rows[i], j, SEASONAL], away)
                total, weights = 0.0, 0.0
                for m in range(3):
                    weight = cell.weights[m] * picked[m]
                    total += weight * surprises[m] * surprises[m]
                    weights += weight
                    parts[i, j, m] = surprises[m]
                decades = DECADES * math.sqrt(total / weights)
                once = max(once_in, once_in_s / cell.gap_s) if cell.gap_s > 0.0 else once_in
                score = decades * math.log10(once_in) / math.log10(once)
                if cell.hold > 0:
                    cell.hold -= 1
                    if cell.hold == 0:
                        cell.alarm = 0.0
                if score > cell.alarm:
                    if score >= ALARM:
                        cell.alarm, cell.hold = score, HOLD + 1
                else:
                    score *= HELD
                scores[i, j] = score
                why[i, j, 0], why[i, j, 2], why[i, j, 8] = x, n, new
                why[i, j, 3], why[i, j, 4], why[i, j, 5] = distance, expected, by_day
                why[i, j, 6], why[i, j, 7] = ts[i], decades
            _pace(cell, ts[i])
            _watch(cell, x, expected)
            seasonal.visit(cell.season, ts[i], x, ALPHA, period_s)
            remember(memory, x)


class AutoDetector:
    """See the module."""

    name: ClassVar[str] = "auto"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = AutoConfig

    def __init__(
        self, config: AutoConfig, fields: tuple[str, ...], field_thresholds: dict[str, float] | None = None
    ) -> None:
        self.config = config
        self.fields = fields
        k = len(fields)
        self.dtype: np.dtype[Any] = np.dtype([("cells", CELL, (k,)), ("tails", TAIL, (k, len(MEMBERS)))])
        self.thresholds = thresholds_of(fields, math.log10(config.once_in), field_thresholds)
        self._picked = np.zeros(len(MEMBERS))
        left = config.budget_us
        for member, cost in COSTS_US.items():
            if cost <= left + 1e-9:
                self._picked[member] = 1.0
                left -= cost

    def init(self, n: int) -> StateArray:
        """See `Detector.init`."""
        return np.zeros(n, self.dtype)

    def score(self, state: StateArray, rows: RowArray, values: FloatArray, ts: FloatArray) -> FloatArray:
        """See `Detector.score`; the score is the surprise in decades."""
        return self.examine(state, rows, values, ts)[0]

    def examine(
        self, state: StateArray, rows: RowArray, values: FloatArray, ts: FloatArray
    ) -> tuple[FloatArray, Explain]:
        """See `Detector.examine`."""
        n, k = len(rows), len(self.fields)
        scores = np.zeros((n, k))
        parts = np.zeros((n, k, len(MEMBERS)))
        why = np.zeros((n, k, 9))
        if n:
            config = self.config
            clipped = np.clip(values, -HUGE, HUGE)
            _run(
                state["cells"], state["tails"], rows, clipped, ts,
                config.warmup, config.period_s, config.once_in, DAY_S * config.once_in_days, self._picked,
                scores, parts, why,
            )  # fmt: skip
        return scores, partial(self._explain, scores, parts, why)

    def _explain(self, scores: FloatArray, parts: FloatArray, why: FloatArray, i: int, j: int) -> str:
        now, like, n, distance, expected, by_day, ts, decades, new = why[i, j].tolist()
        if scores[i, j] != scores[i, j]:
            return "no value"
        if n == 0:
            return "still warming up"
        said = {
            NOVELTY: lambda: novelty.words(now, new, like, n),
            KNN: lambda: knn.words(now, distance, n, WINDOW),
            SEASONAL: lambda: seasonal.words(now, expected, ts, bool(by_day), self.config.period_s),
        }
        # the member that is most surprised first, then those that agree
        order = sorted(range(len(MEMBERS)), key=lambda m: -parts[i, j, m])
        heard = [m for m in order if parts[i, j, m] > 0.5 * parts[i, j, order[0]]] or order[:1]
        reasons = ", and ".join(said[m]() for m in heard)
        return f"{reasons}; so strange once in {10**decades:,.0f} readings"

    def relearn(self, state: StateArray, row: int, column: int) -> None:
        """Forget a sensor's past in one field: it warms up again."""
        state["cells"][row, column] = 0
        state["tails"][row, column] = 0

    def describe(self, state: StateArray, row: int) -> dict[str, str]:
        """Say which members a sensor has, their weights and why, by field."""
        told = {}
        for j, field in enumerate(self.fields):
            cell = state["cells"][row, j]
            if cell["memory"]["seen"] <= self.config.warmup:
                told[field] = f"warming up: {cell['memory']['seen']} of {self.config.warmup} readings"
                continue
            explained = max(0.0, 1 - cell["residual"] / max(cell["distance"], 1e-300))
            reasons = {
                NOVELTY: "always",
                KNN: f"autocorrelation {abs(cell['product']) / max(cell['square'], 1e-300):.2f}",
                SEASONAL: f"season explains {explained:.0%}",
            }
            told[field] = "; ".join(
                f"{MEMBERS[m]} {cell['weights'][m]:.2f} ({reasons[m]})"
                if self._picked[m]
                else f"{MEMBERS[m]} left out (budget of {self.config.budget_us:g} us)"
                for m in reasons
            )
        return told
