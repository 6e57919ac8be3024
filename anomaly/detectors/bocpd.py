"""Bayesian online change points: when did the present run of like values begin?

What it finds: changes of level or spread that last, within some readings and in proportion to how clear they
are, each change like the first. When it misleads: a run of values that are not alike (a rhythm, a wandering
level) is many runs to it; such readings count less (see below), and then only large changes are found. A
spike is an outlier to it, not a change.

For each sensor and field it keeps the probabilities of 10 beginnings of the present run, each with what its
readings say of mean and variance (normal-gamma; so the next value has Student's t distribution), and forgets
the least probable. A reading x multiplies the probability of each run by

    p(x | run) ^ c,    p = 0.99 t(x | run) + 0.01 broad(x)        c = (1 - rho) / (1 + rho)

The broad density (Cauchy, 10 standard deviations wide) explains outliers; what it explains is not learned.
c is the share of an independent reading that one is worth where neighbouring ones have correlation rho. Then
each run ends, and a new one begins, with probability c / `run`. The score is

    -log10 P(the run is longer than `recent` readings)

so 4 says: odds of 10,000 to 1 that something changed in the last 40. `recent` is counted in independent
readings, five times as many at most. It must be longer than a change takes to be seen: with 10, runs that
began a little before the change blurred it, and a fifth of the shifts of 3 standard deviations were found
instead of all.

Cost: 0.5 us a reading and field.

Source: R. Adams, D. MacKay, "Bayesian online changepoint detection" (arXiv:0710.3742, 2007); P. Fearnhead, Z.
Liu, "On-line inference for multiple changepoint problems" (JRSS B 69, 2007), for keeping a fixed number.

    >>> import numpy as np
    >>> detector = BocpdDetector(BocpdConfig(), ("temperature",))
    >>> rows, ts = np.zeros(800, np.int32), 60 * np.arange(800.0)
    >>> values = 20 + np.sin(2.3 * np.arange(800.0) ** 1.5)[:, None]
    >>> values[700:] += 3
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> int(np.argmax(scores[:, 0] >= 4))
    702
    >>> explain(705, 0)
    'changed from 20.02 ± 0.7 to 23.09 ± 0.65, 300 s ago (odds 10^12 to 1)'
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

#: Runs that are kept.
RUNS = 10
#: What is known of a run before its first reading: readings' worth of mean, and of variance.
PRIOR_MEAN = 0.05
PRIOR_SHAPE = 0.5
#: A run's past fades when it is worth more readings than this.
LONGEST = 2000.0
#: Share and width, in standard deviations, of the broad density.
OUTLIERS = 0.01
BROAD = 10.0
#: The usual mean, spread and correlation are learned over so many readings, clipped at CLIP deviations.
MEMORY = 500
CLIP = 4.0
#: The runs begin after so many readings, when there is a spread.
START = 100
MOST_RHO = 0.999
#: A change is told for so many times `recent` readings at most, however much they are alike.
SLOWEST = 5.0
RESOLUTION = 1e-6
LEAST = 1e-100
MOST = 15.0

RUN: np.dtype[Any] = np.dtype(
    [
        ("weight", "<f8"),
        ("length", "<f8"),  # in independent readings
        ("age", "<f8"),  # in readings
        ("since", "<f8"),
        ("mean", "<f8"),
        ("kappa", "<f8"),  # readings' worth of the mean
        ("alpha", "<f8"),
        ("beta", "<f8"),
    ]
)


class BocpdConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `bocpd`.

    Args:
        once_in: the odds of a change from which a reading is anomalous.
        run: readings after which a change is expected.
        recent: a run up to so many readings long is a change that is told.
    """

    warmup: int = 300
    run: float = 1000.0
    recent: int = 40

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if self.warmup < START:
            faults["warmup"] = f"{self.warmup} is less than {START}"
        if not 2 <= self.run <= 1e9:
            faults["run"] = f"{self.run} is not in [2, 1e9]"
        if not 1 <= self.recent <= LONGEST:
            faults["recent"] = f"{self.recent} is not in [1, {LONGEST:g}]"
        return faults


@compiled
def _learn(run: Any, d: float, worth: float) -> None:
    """Learn a reading, d from the run's mean, as `worth` readings."""
    kappa = run.kappa + worth
    run.alpha += 0.5 * worth
    run.beta += 0.5 * worth * run.kappa / kappa * d * d
    run.mean += worth * d / kappa
    run.kappa = kappa
    if kappa > LONGEST:
        fade = LONGEST / kappa
        run.kappa, run.alpha, run.beta = LONGEST, run.alpha * fade, run.beta * fade


@compiled
def _weigh(run: Any, x: float, broad: float, worth: float) -> None:
    """Multiply a run's weight by what it says of x, and learn x as far as it is no outlier."""
    d = x - run.mean
    width = 2.0 * run.beta * (run.kappa + 1.0) / run.kappa
    # gamma(alpha + 1/2) / gamma(alpha), squared, within 2%
    ratio = run.alpha - 0.25 + 1.0 / (32.0 * run.alpha)
    t = math.sqrt(ratio / (math.pi * width)) * math.exp(-(run.alpha + 0.5) * math.log(1.0 + d * d / width))
    t *= 1.0 - OUTLIERS
    p = t + OUTLIERS * broad
    # runs are compared with one another: in units of the broad density
    run.weight *= math.exp(worth * math.log(p / broad))
    run.length += worth
    run.age += 1.0
    _learn(run, d, worth * t / p)


@compiled
def _begin(cell: Any, place: int, weight: float, at: float, var: float) -> None:
    run = cell.runs[place]
    run.weight = weight
    run.length = 0.0
    run.age = 0.0
    run.since = at
    run.mean = cell.mean
    run.kappa, run.alpha, run.beta = PRIOR_MEAN, PRIOR_SHAPE, PRIOR_SHAPE * var


@compiled
def _likeliest(cell: Any, recent: float, long: bool) -> int:
    """Return the most probable of the long runs, or of the short ones; -1 if there is none."""
    best = -1
    runs = cell.runs
    for k in range(cell.kept):
        is_long = runs[k].length > recent or runs[k].age > SLOWEST * recent
        if is_long == long and (best < 0 or runs[k].weight > runs[best].weight):
            best = k
    return best


@compiled
def _turn(cell: Any, x: float, at: float, sd: float, worth: float, hazard: float, old: int) -> None:
    """Begin a run with this reading, weigh all, and make their weights sum to 1; run `old` is kept."""
    runs = cell.runs
    place, total = 0, 0.0
    if cell.kept < RUNS:
        place = cell.kept
        cell.kept += 1
    else:
        place = 1 if old == 0 else 0
        for k in range(RUNS):
            if k != old and runs[k].weight < runs[place].weight:
                place = k
    for k in range(cell.kept):
        runs[k].weight *= 1.0 - hazard
    _begin(cell, place, hazard if cell.kept > 1 else 1.0, at, sd * sd)
    far = (x - cell.mean) / (BROAD * sd)
    broad = 1.0 / (math.pi * BROAD * sd * (1.0 + far * far))
    for k in range(cell.kept):
        _weigh(runs[k], x, broad, worth)
        total += runs[k].weight
    for k in range(cell.kept):
        runs[k].weight = max(runs[k].weight / total, 1e-200)


@compiled
def _usual(cell: Any, x: float, sd: float) -> None:
    """Learn mean, variance and correlation of the readings of all runs."""
    e = x - cell.mean
    if cell.seen >= START:
        e = min(max(e, -CLIP * sd), CLIP * sd)
    w = 1.0 / min(cell.seen + 1, MEMORY)
    cell.mean += w * e
    cell.cov += w * (e * cell.e - cell.cov)
    cell.var += w * (e * e - cell.var)
    cell.e = e


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    warmup: int,
    hazard: float,
    recent: float,
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
            if cell.seen >= START:
                rho = min(max(cell.cov / cell.var, 0.0), MOST_RHO) if cell.var > 0.0 else 0.0
                worth = (1.0 - rho) / (1.0 + rho)
                # without the likeliest long run there would be nothing to hold a change against
                _turn(cell, x, ts[i], sd, worth, hazard * worth, _likeliest(cell, recent, True))
                runs = cell.runs
                old, new = _likeliest(cell, recent, True), _likeliest(cell, recent, False)
                long = 0.0
                for k in range(cell.kept):
                    if runs[k].length > recent or runs[k].age > SLOWEST * recent:
                        long += runs[k].weight
                decades = min(max(-math.log10(max(long, 1e-300)), 0.0), MOST) if old >= 0 else 0.0
                if cell.seen >= warmup:
                    raw[i, j] = decades
                    if new >= 0:
                        why[i, j, 0], why[i, j, 1] = cell.level, cell.spread
                        why[i, j, 2] = runs[new].mean
                        why[i, j, 3] = math.sqrt(runs[new].beta / runs[new].alpha)
                        why[i, j, 4] = ts[i] - runs[new].since
                        why[i, j, 5] = decades
                if old >= 0 and long >= 0.5:
                    cell.level, cell.spread = runs[old].mean, math.sqrt(runs[old].beta / runs[old].alpha)
                    if cell.changed > 0:
                        # deviations from the level before would pass for correlation
                        cell.mean, cell.e = cell.level, 0.0
                        cell.var = max(cell.var, cell.spread * cell.spread)
                        cell.changed = 0
                if decades >= threshold:
                    cell.changed = 1
            if cell.changed == 0:
                _usual(cell, x, sd)
            if cell.seen < 1 << 30:
                cell.seen += 1


class BocpdDetector(DirectDetector):
    """See the module."""

    name: ClassVar[str] = "bocpd"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = BocpdConfig
    evidence: ClassVar[tuple[str, ...]] = (
        "level",
        "spread",
        "new_level",
        "new_spread",
        "lasted_s",
        "decades",
    )
    config: BocpdConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        return np.dtype(
            [
                ("seen", "<i4"),
                ("kept", "<i4"),  # runs
                ("changed", "<i4"),  # 1 from a change on, until the new run is long
                ("mean", "<f8"),
                ("var", "<f8"),
                ("cov", "<f8"),
                ("e", "<f8"),
                ("level", "<f8"),  # of the last long run that was probable
                ("spread", "<f8"),
                ("runs", RUN, (RUNS,)),
            ]
        )

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        config = self.config
        settings = (config.warmup, 1.0 / config.run, float(config.recent), math.log10(config.once_in))
        _run(cells, rows, values, ts, *settings, raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        before = f"{evidence['level']:.4g} ± {evidence['spread']:.2g}"
        if evidence["decades"] < 1:
            return f"no clear change from {before}"
        now = f"{evidence['new_level']:.4g} ± {evidence['new_spread']:.2g}"
        odds = f"odds 10^{evidence['decades']:.0f} to 1"
        return f"changed from {before} to {now}, {evidence['lasted_s']:.4g} s ago ({odds})"
