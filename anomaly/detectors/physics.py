"""Physics: laws that the user states are checked at every reading, and the broken one is named.

What it finds: readings that fit each by itself but not together, by what is known of the plant: a tank that
falls faster than its flows say (a leak), a flow meter that drifts, a pump that takes more power than pressure
and flow explain. When it misleads: a law with a term missing is broken whenever that term acts; a constant
that is wrong by 5% makes a usual residual that grows with the flow, and hides what is smaller; what is broken
from the beginning is learned as usual; a sensor that is slow against `window_s` breaks the law at every
change.

A law is `left = right` (`anomaly.detectors.laws`). It is taken in integral form: both sides are averaged over
the past with weights that fade with `window_s`, so derivatives are never taken of noise. Between two readings
of one sensor, x' and x, dt seconds apart, d(x)/dt is (x - x')/dt, which is exactly its mean, and all else is
the mean of both ends (trapezoid rule). With a = exp(-dt / window_s):

    sum = a sum + (1 - a) mean of the side          side = sum / (the same sum of 1)
    r = left - right                                raw score = |r - usual r| / usual deviation of r

A law without derivative and without `window_s` is taken at each reading alone. The raw score of each law is
calibrated on its own (`anomaly.calibration`); the score of a reading is that of the worst law, less
log10(laws), since several laws have several chances to be wrong.

The usual residual and the calibration are learned late, and not from a law that stays broken, until
`patience_s` has passed (`anomaly.detectors.lagged`): so a leak is compared with what was before it, however
slowly it shows. The readings of one window are much alike, so a residual is never stranger than the t
distribution allows after so many windows. What happened in a gap of ten usual gaps (and of more than
`window_s`) is not guessed: the averages fade, and begin anew.

How long a window? Until it is full, a leak adds up while the noise of the level stays what it is; beyond, the
noise of the flows and a wrong constant add up too. Large leaks are seen at once with any window.

Cost: 0.2 to 0.4 us a reading and law of some operations, calibration included; 0.8 KB a sensor and law.

Source: the conservation laws themselves; residuals of balances as features of a process: J. Gertler, "Fault
Detection and Diagnosis in Engineering Systems" (1998); that a learned model should be held to the equation it
obeys: M. Raissi, P. Perdikaris, G. Karniadakis, "Physics-informed neural networks" (J. Computational Physics
378, 2019). The integral form: D. Messenger, D. Bortz, "Weak SINDy" (Multiscale Model. Simul. 19, 2021).

    >>> import numpy as np
    >>> rng = np.random.default_rng(1)
    >>> inflow = 2 + np.sin(np.arange(3000) / 50)
    >>> leak = np.where(np.arange(3000) >= 2900, 1.5, 0)
    >>> level = 10 + np.cumsum((inflow - 2 - leak) / 40) + rng.normal(0, 0.01, 3000)
    >>> law = Balance(name="tank", law="d(level)/dt = (inflow - 2) / area", window_s=60)
    >>> config = PhysicsConfig(balances=[law], constants={"area": 40})
    >>> detector = PhysicsDetector(config, ("level", "inflow"))
    >>> rows, ts = np.zeros(3000, np.int32), np.arange(3000.0)
    >>> values = np.stack([level, inflow], 1)
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> bool(scores[2000:2900].max() < 4 < scores[2930:].min())
    True
    >>> explain(2999, 0).partition(", over")[0]
    "law 'tank' is broken: d(level)/dt is -0.02184, but (inflow - 2) / area is 0.008855"
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np

from anomaly.calibration import NOT_YET, rarity
from anomaly.compiled import compiled
from anomaly.detectors.balances import Balance, Programs, sides
from anomaly.detectors.direct import DirectDetector
from anomaly.detectors.frame import HUGE, CellConfig
from anomaly.detectors.lagged import GOES_ON, LAGGED, LEARNED, keep, turn
from anomaly.detectors.laws import BadLaw, Law, parse_law
from anomaly.detectors.symmetric import f_beyond
from anomaly.errors import BadDetector
from streams.errors import Fault

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.detector import DetectorConfig, FloatArray, RowArray

#: Windows (readings where there is none) over which the usual residual is learned, and how far one reading
#: counts, in deviations, for its mean and its spread.
MEMORY = 2_000
MEAN_CLIP = 4.0
SPREAD_CLIP = 100.0
#: Where the spread has grown by this factor, what was calibrated before means nothing: it begins anew.
GROWN = 8.0
#: Mean absolute deviation to standard deviation, of a Gaussian.
FROM_MEAN = 1.2533
#: A law is never broken by less than this share of its sides.
ROUNDING = 1e-6
LEAST = 1e-100
#: What is learned is learned in blocks of a window, of at least so many readings.
BLOCK = 32
#: Surprises of less decades aren't looked at twice.
SURE = 1.0
#: How many laws a detector may have.
MOST_LAWS = 32


#: What a block of readings adds to the usual residual: sums.
_BLOCK: np.dtype[Any] = np.dtype([("n", "<i4"), ("windows", "<f8"), ("residual", "<f8"), ("away", "<f8")])


class PhysicsConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `physics`.

    Args:
        balances: the laws, as text or as tables.
        constants: numbers that laws may name.
        patience_s: a law that has been broken for so long is learned as usual; 0: never.
    """

    balances: list[str | Balance]
    constants: dict[str, float] = msgspec.field(default_factory=dict)
    patience_s: float = 86_400.0

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`; laws are read where the fields are known."""
        faults = super().faults()
        if not 1 <= len(self.balances) <= MOST_LAWS:
            faults["balances"] = f"{len(self.balances)} laws are not 1 to {MOST_LAWS}"
        for i, balance in enumerate(self.balances):
            found = balance.faults() if isinstance(balance, Balance) else {}
            faults.update({f"balances[{i}].{name}": what for name, what in found.items()})
        for name, value in self.constants.items():
            if not abs(value) <= HUGE:
                faults[f"constants.{name}"] = f"{value} is not in [-1e150, 1e150]"
        if not 0 <= self.patience_s < math.inf:
            faults["patience_s"] = f"{self.patience_s} is not 0 or more seconds"
        return faults


@compiled
def _judge(
    cell: Any,
    t: float,
    fresh: float,
    warmup: int,
    window_s: float,
    tolerance: float,
    threshold: float,
    patience_s: float,
    why: FloatArray,
) -> float:
    """Return the surprise of a law's residual and learn from it; NOT_YET in warm-up."""
    left, right = cell.left / cell.weight, cell.right / cell.weight
    residual = left - right
    past = cell.past
    turned = turn(past, t, BLOCK, window_s, patience_s)
    if turned != GOES_ON:
        before, block = cell.blocks[0], cell.blocks[1]
        if turned == LEARNED and before.n > 0:
            cell.n = min(cell.n + before.n, 1_000_000_000)
            cell.windows += before.windows
            weight = min(before.windows / min(cell.windows, MEMORY), 1.0)
            cell.mean += weight * (before.residual / before.n - cell.mean)
            cell.spread += weight * (before.away / before.n - cell.spread)
            if cell.n >= warmup and cell.spread > GROWN * cell.calibrated:
                cell.calibrated = cell.spread
                past.tail.n = past.tail.tail_n = 0
                past.tail.counts[:] = 0
        before.n, before.windows, before.residual, before.away = (
            block.n,
            block.windows,
            block.residual,
            block.away,
        )
        block.n, block.windows, block.residual, block.away = 0, 0.0, 0.0, 0.0
    sd = max(FROM_MEAN * cell.spread, ROUNDING * (abs(left) + abs(right)), LEAST)
    away = residual - cell.mean
    decades = NOT_YET
    if cell.n >= warmup:
        raw = abs(away) / sd if abs(residual) > tolerance else 0.0
        decades = rarity(past.tail, raw)
        if decades > SURE and raw > 0.0:
            # readings of one window are alike: of few windows not even a Gaussian's tail is known well
            known = max(min(cell.windows, MEMORY) - 1.0, 1.0)
            decades = min(decades, -math.log10(max(f_beyond(raw * raw, 1.0, known), 1e-300)))
        stride = int(window_s / (BLOCK * cell.gap_s)) if cell.gap_s > 0.0 else 1
        keep(past, raw, decades >= threshold, max(min(stride, 1_000_000), 1))
        why[2], why[3], why[4], why[5] = left, right, cell.mean, sd
        if not past.strange:
            away = min(max(away, -SPREAD_CLIP * sd), SPREAD_CLIP * sd)
            residual = cell.mean + min(max(away, -MEAN_CLIP * sd), MEAN_CLIP * sd)
    block = cell.blocks[1]
    block.n += 1
    block.windows += fresh
    block.residual += residual
    block.away += abs(away)
    return decades


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    code: NDArray[np.int32],
    numbers: FloatArray,
    parts: NDArray[np.int32],
    counts: NDArray[np.int32],
    uses: NDArray[np.int32],
    settings: FloatArray,
    depth: int,
    limits: tuple[int, float, float],
    raw: FloatArray,
    why: FloatArray,
) -> None:
    warmup, threshold, patience_s = limits
    laws = counts.shape[0]
    # several laws have several chances to be strange
    chances = math.log10(laws)
    now = np.empty(uses.shape[1])
    before = np.empty(uses.shape[1])
    slopes = np.zeros(parts.shape[1])
    stack = np.zeros(depth)
    numbers_of = np.zeros(6)
    for i in range(rows.shape[0]):
        best = math.nan
        for b in range(laws):
            missing = False
            for k in range(counts[b, 0]):
                now[k] = values[i, uses[b, k]]
                missing |= now[k] != now[k]
            if missing:
                continue
            cell = cells[rows[i], 0].laws[b]
            found = sides(
                cell, now, ts[i], code, numbers, parts[b], counts[b], settings[b, 0], before, slopes, stack
            )
            if found != found:
                continue
            if found > 0.0:
                found = _judge(
                    cell,
                    ts[i],
                    found,
                    warmup,
                    settings[b, 0],
                    settings[b, 1],
                    threshold + chances,
                    patience_s,
                    numbers_of,
                )
                if found >= 0.0:
                    found = max(found - chances, 0.0)
            if best != best or found > best:
                best = found
                if found >= 0.0:
                    numbers_of[0], numbers_of[1] = found, b
                    why[i, 0, :] = numbers_of
        raw[i, 0] = best


class PhysicsDetector(DirectDetector):
    """See the module.

    Raises:
        BadDetector: with all that is wrong with the laws.
    """

    name: ClassVar[str] = "physics"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = PhysicsConfig
    per_field: ClassVar[bool] = False
    evidence: ClassVar[tuple[str, ...]] = ("decades", "law", "left", "right", "usual", "deviation")
    config: PhysicsConfig

    def __init__(
        self,
        config: PhysicsConfig,
        fields: tuple[str, ...],
        field_thresholds: dict[str, float] | None = None,
    ) -> None:
        self.balances = [
            balance if isinstance(balance, Balance) else Balance(law=balance) for balance in config.balances
        ]
        self.laws: list[Law] = []
        faults = [
            Fault(f"constants.{name}", "is a field too: name the constant otherwise")
            for name in config.constants
            if name in fields
        ]
        for i, balance in enumerate(self.balances):
            path = f"balances[{i}]" + (".law" if isinstance(config.balances[i], Balance) else "")
            try:
                self.laws.append(parse_law(balance.law, fields, config.constants))
            except BadLaw as error:
                faults += [Fault(path, what) for what in error.faults]
        if faults:
            raise BadDetector(faults)
        self._programs = Programs(self.laws, self.balances)
        super().__init__(config, fields, field_thresholds)

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        law = np.dtype(
            [
                ("n", "<i4"),
                ("windows", "<f8"),  # learned, as `n` readings
                ("known", "<i4"),  # whether `last` and `ts` are
                ("ts", "<f8"),
                ("last", "<f8", (self._programs.uses.shape[1],)),  # values of the fields that it uses
                ("gap_s", "<f8"),
                ("weight", "<f8"),  # faded sums: of the time in windows, and of both sides
                ("left", "<f8"),
                ("right", "<f8"),
                ("size", "<f8"),  # usual sum of both sides
                ("mean", "<f8"),  # of the residual,
                ("spread", "<f8"),  # and its mean absolute deviation
                ("calibrated", "<f8"),  # the spread when `past` began
                ("past", LAGGED),
                ("blocks", _BLOCK, (2,)),  # as those of `past`: the one before, and the one that goes on
            ]
        )
        return np.dtype([("laws", law, (len(self.laws),))])

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        p = self._programs
        limits = (self.config.warmup, math.log10(self.config.once_in), float(self.config.patience_s))
        programs = (p.code, p.numbers, p.parts, p.counts, p.uses, p.settings, p.depth)
        _run(cells, rows, values, ts, *programs, limits, raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        b = int(evidence["law"])
        law, balance = self.laws[b], self.balances[b]
        left, right, usual, sd = (evidence[name] for name in ("left", "right", "usual", "deviation"))
        window_s = float(self._programs.settings[b, 0])
        over = f", over the last {window_s:g} s" if window_s else ""
        name = f"law '{balance.name}'" if balance.name else "the law"
        verb = "is broken" if evidence["decades"] >= self.thresholds[0] else "holds"
        return (
            f"{name} {verb}: {law.left} is {left:.4g}, but {law.right} is {right:.4g}{over}; the difference "
            f"{left - right:.3g} is {abs(left - right - usual) / sd:.1f} sd from the usual {usual:.3g} ± "
            f"{sd:.3g}, so strange once in {10 ** evidence['decades']:,.0f} readings"
        )
