"""Physics: laws that the user states are checked at every reading, and the broken one is named.

What it finds: readings that fit each by itself but not together, by what is known of the plant: a tank that
falls faster than its flows say (a leak), a flow meter that drifts, a pump that takes more power than pressure
and flow explain. When it misleads: a law with a term missing is broken whenever that term acts; a constant
that is wrong by 5% makes a usual residual that grows with the flow, and hides what is smaller; what is broken
from the beginning is learned as usual; a
sensor that is slow against `window_s` breaks the law at every change. A fault smaller than the usual
residual stays unseen.

A law is `left = right` (`anomaly.detectors.laws`). It is taken in integral form: both sides are averaged over
the past with weights that fade with `window_s`, so derivatives are never taken of noise. Between two readings
of one sensor, x' and x, dt seconds apart, d(x)/dt is (x - x')/dt, which is exactly its mean, and all else is
the mean of both ends (trapezoid rule). With a = exp(-dt / window_s):

    sum = a sum + (1 - a) mean of the side          side = sum / (the same sum of 1)
    r = left - right                                raw score = |r - usual r| / usual deviation of r

A law without derivative and without `window_s` is taken at each reading alone. The raw score of each law is
calibrated on its own (`anomaly.calibration`); the score of a reading is that of the worst law, less
log10(laws), since several laws have several chances to be wrong.

What is broken stays so, until `patience_s` has passed (`anomaly.detectors.patient`). What happened in a gap
of ten usual gaps (and of more than `window_s`) is not guessed: the averages fade, and begin anew.

Cost: 0.2 to 0.3 us a reading and law of some operations, calibration included; 0.3 KB a sensor and law.

Source: the conservation laws themselves; residuals of balances as features of a process: J. Gertler, "Fault
Detection and Diagnosis in Engineering Systems" (1998); that a learned model should be held to the equation it
obeys: M. Raissi, P. Perdikaris, G. Karniadakis, "Physics-informed neural networks" (J. Computational Physics
378, 2019). The integral form: D. Messenger, D. Bortz, "Weak SINDy" (Multiscale Model. Simul. 19, 2021).

    >>> import numpy as np
    >>> rng = np.random.default_rng(1)
    >>> inflow = 2 + np.sin(np.arange(3000) / 50)
    >>> leak = np.where(np.arange(3000) >= 2900, 1.5, 0)
    >>> level = 10 + np.cumsum((inflow - 2 - leak) / 40) + rng.normal(0, 0.01, 3000)
    >>> law = Balance(name="tank", law="d(level)/dt = (inflow - 2) / area")
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

from anomaly.calibration import NOT_YET
from anomaly.compiled import compiled
from anomaly.detectors.direct import DirectDetector
from anomaly.detectors.frame import HUGE, CellConfig
from anomaly.detectors.laws import BadLaw, Law, evaluate, parse_law
from anomaly.detectors.patient import PATIENT, patient_surprise
from anomaly.errors import BadDetector
from streams.errors import Fault

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.detector import DetectorConfig, FloatArray, RowArray

#: Averaged over so many seconds where a law has a derivative and no `window_s`.
WINDOW_S = 60.0
#: A window is full from this weight on: one `window_s`.
FULL = 0.63
#: Readings over which the usual residual is learned, and how far one reading counts, in deviations, for its
#: mean and its spread.
MEMORY = 5_000
MEAN_CLIP = 4.0
SPREAD_CLIP = 100.0
#: Where the spread has grown by this factor, what was calibrated before means nothing: it begins anew.
GROWN = 8.0
#: Mean absolute deviation to standard deviation, of a Gaussian.
FROM_MEAN = 1.2533
#: A law is never broken by less than this share of its sides.
ROUNDING = 1e-6
LEAST = 1e-100
#: A side counts at most so many usual sides: a wild value is not remembered for long.
FAR = 1_000.0
#: Usual gaps after which a sensor begins anew.
GAPS = 10.0
#: How many laws a detector may have.
MOST_LAWS = 32


class Balance(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One law.

    Args:
        law: `left = right`.
        name: what the explanation calls it; the law itself without.
        window_s: seconds that both sides are averaged over; unset: 60 with a derivative, else 0, each reading
            for itself.
        tolerance: a difference of the sides up to this is never strange, in their unit.
    """

    law: str
    name: str = ""
    window_s: float | None = None
    tolerance: float = 0.0

    def faults(self) -> dict[str, str]:
        """What is wrong with it, by setting; the law itself is read with the fields."""
        faults = {}
        if self.window_s is not None and not 0 <= self.window_s <= 1e9:
            faults["window_s"] = f"{self.window_s} is not in [0, 1e9]"
        if not 0 <= self.tolerance <= HUGE:
            faults["tolerance"] = f"{self.tolerance} is not in [0, 1e150]"
        return faults


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


class _Programs:
    """All laws as arrays for the compiled loop.

    Attributes:
        code: int32 [steps, 2], see `laws.evaluate`.
        numbers: float64.
        parts: int32 [laws, 2 + slopes, 2], begin and end in `code`; slopes that a law lacks are empty.
        counts: int32 [laws, 2], fields that it uses, derivatives.
        uses: int32 [laws, fields], which these are.
        settings: float64 [laws, 2], window_s and tolerance.
        depth: of the stack.
    """

    def __init__(self, laws: list[Law], balances: list[Balance]) -> None:
        slopes, fields = max(law.slopes for law in laws), max(len(law.uses) for law in laws)
        self.parts = np.zeros((len(laws), 2 + slopes, 2), np.int32)
        self.counts = np.zeros((len(laws), 2), np.int32)
        self.uses = np.zeros((len(laws), fields), np.int32)
        self.settings = np.zeros((len(laws), 2))
        code: list[tuple[int, int]] = []
        numbers: list[float] = []
        for i, (law, balance) in enumerate(zip(laws, balances, strict=True)):
            self.parts[i, : len(law.parts)] = np.array(law.parts) + len(code)
            self.counts[i] = len(law.uses), law.slopes
            self.uses[i, : len(law.uses)] = law.uses
            self.settings[i] = _window_s(law, balance), balance.tolerance
            # each law counts its numbers from its own first
            code += [(op, arg + len(numbers) if op == 0 else arg) for op, arg in law.code]
            numbers += law.numbers
        self.code = np.array(code, np.int32).reshape(-1, 2)
        self.numbers = np.array([*numbers, 0.0])
        self.depth = max(law.depth for law in laws)


def _window_s(law: Law, balance: Balance) -> float:
    if balance.window_s is not None:
        return balance.window_s
    return WINDOW_S if law.slopes else 0.0


@compiled
def _sides(
    cell: Any,
    now: FloatArray,
    t: float,
    code: NDArray[np.int32],
    numbers: FloatArray,
    parts: NDArray[np.int32],
    counts: NDArray[np.int32],
    window_s: float,
    before: FloatArray,
    slopes: FloatArray,
    stack: FloatArray,
) -> float:
    """Move the averages of both sides on to a reading.

    Args:
        cell: of one sensor and law, changed.
        now: float64 [uses], values of the law's fields.
        t: their time.
        code: see `_Programs`.
        numbers: see `_Programs`.
        parts: of this law.
        counts: of this law.
        window_s: of this law.
        before: float64 [uses], written over.
        slopes: float64, written over.
        stack: float64, written over.

    Returns:
        1 where the sides are known, NOT_YET where they aren't yet, NaN where they have no value.
    """
    dt = t - cell.ts
    known = cell.known
    if counts[1] == 0 and window_s == 0.0:
        left = evaluate(code, parts[0, 0], parts[0, 1], numbers, now, slopes, stack)
        right = evaluate(code, parts[1, 0], parts[1, 1], numbers, now, slopes, stack)
        fade = 0.0
    else:
        if known and dt <= 0.0 and -dt <= window_s:
            return NOT_YET
        left = right = 0.0
        fade = 1.0
        if known and dt > 0.0:
            fade = math.exp(-dt / window_s) if window_s > 0.0 else 0.0
            for k in range(counts[0]):
                before[k] = cell.last[k]
            for k in range(counts[1]):
                begin, end = parts[2 + k, 0], parts[2 + k, 1]
                slopes[k] = evaluate(code, begin, end, numbers, now, slopes, stack)
                slopes[k] -= evaluate(code, begin, end, numbers, before, slopes, stack)
                slopes[k] /= dt
            for at in (before, now):
                left += 0.5 * evaluate(code, parts[0, 0], parts[0, 1], numbers, at, slopes, stack)
                right += 0.5 * evaluate(code, parts[1, 0], parts[1, 1], numbers, at, slopes, stack)
            gap = cell.gap_s
            usual = gap == 0.0 or dt <= max(GAPS * gap, window_s)
            cell.gap_s = dt if gap == 0.0 else gap + 0.02 * (min(dt, GAPS * gap) - gap)
            if not usual:
                cell.weight *= fade
                cell.left *= fade
                cell.right *= fade
                fade = 1.0
    cell.known = 1
    cell.ts = t
    for k in range(counts[0]):
        cell.last[k] = now[k]
    if not (abs(left) <= HUGE and abs(right) <= HUGE):
        return math.nan
    if fade < 1.0:
        size = abs(left) + abs(right)
        if cell.n >= 10 and cell.size > 0.0:
            most = FAR * cell.size / (1.0 - fade)
            left = min(max(left, -most), most)
            right = min(max(right, -most), most)
            size = min(size, SPREAD_CLIP * cell.size)
        cell.size += (size - cell.size) / (1.0 + min(cell.n, MEMORY))
        cell.weight = fade * cell.weight + (1.0 - fade)
        cell.left = fade * cell.left + (1.0 - fade) * left
        cell.right = fade * cell.right + (1.0 - fade) * right
    elif known == 0 or dt <= 0.0:
        return NOT_YET
    return 1.0 if cell.weight >= FULL else NOT_YET


@compiled
def _judge(
    cell: Any, t: float, warmup: int, tolerance: float, threshold: float, patience_s: float, why: FloatArray
) -> float:
    """Return the surprise of a law's residual and learn from it; NOT_YET in warm-up."""
    left, right = cell.left / cell.weight, cell.right / cell.weight
    residual = left - right
    sd = max(FROM_MEAN * cell.spread, ROUNDING * (abs(left) + abs(right)), LEAST)
    away = residual - cell.mean
    decades = NOT_YET
    past = cell.past
    past.held = 0
    if cell.n >= warmup:
        if cell.spread > GROWN * cell.calibrated:
            cell.calibrated = cell.spread
            past.tail.n = past.tail.tail_n = 0
            past.tail.counts[:] = 0
        raw = abs(away) / sd if abs(residual) > tolerance else 0.0
        decades = patient_surprise(past, raw, t, threshold, patience_s)
        why[2], why[3], why[4], why[5] = left, right, cell.mean, sd
    if not past.held:
        cell.n += cell.n < 1_000_000_000
        weight = 1.0 / min(cell.n, MEMORY)
        if cell.n > warmup and not past.strange:
            away = min(max(away, -SPREAD_CLIP * sd), SPREAD_CLIP * sd)
            cell.mean += weight * min(max(away, -MEAN_CLIP * sd), MEAN_CLIP * sd)
        else:
            cell.mean += weight * away
        cell.spread += weight * (abs(away) - cell.spread)
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
            found = _sides(
                cell, now, ts[i], code, numbers, parts[b], counts[b], settings[b, 0], before, slopes, stack
            )
            if found != found:
                continue
            if found > 0.0:
                found = _judge(
                    cell, ts[i], warmup, settings[b, 1], threshold + chances, patience_s, numbers_of
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
        self._programs = _Programs(self.laws, self.balances)
        super().__init__(config, fields, field_thresholds)

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        law = np.dtype(
            [
                ("n", "<i4"),
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
                ("past", PATIENT),
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
