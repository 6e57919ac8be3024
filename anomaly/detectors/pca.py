"""Pattern of a sensor group: Hotelling's T² and Q of its smoothed fields.

The fields of a reading are taken together. Their exponentially weighted means (a multivariate EWMA
chart) are compared with the mean and the covariance that such means had in the past:

    s = s + smooth (x - s)          z = (s - mean) / sd          T² + Q = z' R^-1 z

with R the correlation of s. In the principal components of R the sum splits: T² over those that hold
`share` of the variance (the group moves as it usually does, but too far), Q over the rest, each by its
own variance (the fields disagree as they usually don't).

Because the *smoothed* fields are measured, a field that drifts in the past has a wide scale and a field
that only has noise a narrow one: a small lasting shift of the latter is seen, a further drift of the
former isn't.

The score is -log10 of the probability of so large a T² + Q for a new reading, by the F distribution,
with n' = n smooth / (2 - smooth) for the number of readings learned from: neighbouring means share their
readings. So the limit is wide after a short training, as it has to be. With `train` this probability is
the score, and the model stays as it is after so many readings. Without, the model keeps learning: slowly
(`memory`), less from strange readings, and the root of F is calibrated against its own past as for other
detectors.

When it misleads: what isn't in the training (a warm-up, another load) is strange; a short spike is
smoothed away; it notices a fault about 1/smooth readings late and its end likewise. At least as many
fields as n' and no more is known: then only huge deviations are strange.

Sources: H. Hotelling (1947); J. Jackson, G. Mudholkar, "Control procedures for residuals associated with
principal component analysis" (Technometrics 21, 1979); C. Lowry et al., "A multivariate exponentially
weighted moving average control chart" (Technometrics 34, 1992); N. Tracy, J. Young, R. Mason (J. Quality
Technology 24, 1992) for the F limit of a new reading.

Cost: 0.8 us a reading of 8 fields after `train` (one core of a virtual AMD EPYC); about p³ operations
every 32 readings more where the model keeps learning. State: 1.5 KB a sensor of 8 fields.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(0, 1, (600, 2)) @ [[1, 1], [0, 0.1]]
    >>> values[500:, 1] += 1
    >>> detector = PcaDetector(PcaConfig(train=400), ("inflow", "outflow"))
    >>> rows, ts = np.zeros(600, np.int32), np.arange(600.0)
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> bool(scores[:500].max() < 4 < scores[530:].min())
    True
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.calibration import MOST
from anomaly.compiled import compiled
from anomaly.detectors.frame import CellConfig, CellDetector
from anomaly.detectors.symmetric import eigen, f_beyond

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray

#: Where the model keeps learning, it is decomposed anew after so many readings.
RENEW = 32
#: A reading of more decades than this is learned from with a tenth of its weight at most.
GATE = 3.0
#: The least variance of a component, of 1 for a field: fields that are copies of one another.
LEAST = 1e-4
#: Standard deviations at which a field is cut off, so that squares stay finite.
FAR = 1e6


class PcaConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `pca`.

    Args:
        train: readings of a clean start, after which the model stays as it is; 0: it keeps learning.
        smooth: weight of a new reading in the smoothed fields.
        share: of the variance, which the principal components hold.
        memory: readings that are remembered where the model keeps learning.
    """

    train: int = 0
    smooth: float = 0.1
    share: float = 0.9
    memory: int = 2_000

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if self.train and not 20 <= self.train <= 1_000_000:
            faults["train"] = f"{self.train} is not 0 and not in [20, 1000000]"
        if not 0.001 <= self.smooth <= 1:
            faults["smooth"] = f"{self.smooth} is not in [0.001, 1]"
        if not 0 < self.share <= 1:
            faults["share"] = f"{self.share} is not in (0, 1]"
        if not 20 <= self.memory <= 1_000_000:
            faults["memory"] = f"{self.memory} is not in [20, 1000000]"
        return faults


@compiled
def _scale(variance: float, mean: float) -> float:
    """Return the standard deviation, at least the rounding of the values."""
    return max(math.sqrt(max(variance, 0.0)), 1e-9 * abs(mean), 1e-100)


@compiled
def _decompose(cell: Any, share: float) -> None:
    p = cell.mean.shape[0]
    matrix = np.eye(p)
    for j in range(p):
        for k in range(j):
            scale = _scale(cell.cov[j, j], cell.mean[j]) * _scale(cell.cov[k, k], cell.mean[k])
            matrix[j, k] = matrix[k, j] = min(max(cell.cov[j, k] / scale, -1.0), 1.0)
    for j in range(p):
        cell.sd[j] = _scale(cell.cov[j, j], cell.mean[j])
    values, vectors = eigen(matrix)
    held = 0.0
    cell.principal = 0
    for c in range(p):
        if held < share * p:
            cell.principal += 1
        held += max(values[c], LEAST)
        scale = math.sqrt(max(values[c], LEAST))
        for j in range(p):
            cell.white[c, j] = vectors[c, j] / scale


@compiled
def _learn(cell: Any, weight: float) -> None:
    """Move mean and covariance of the smoothed fields towards what they are now."""
    p = cell.mean.shape[0]
    for j in range(p):
        dj = cell.smoothed[j] - cell.mean[j]
        for k in range(j + 1):
            dk = cell.smoothed[k] - cell.mean[k]
            cell.cov[j, k] = cell.cov[k, j] = (1.0 - weight) * (cell.cov[j, k] + weight * dj * dk)
    for j in range(p):
        cell.mean[j] += weight * (cell.smoothed[j] - cell.mean[j])


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    settings: tuple[int, int, float, float, int],
    raw: FloatArray,
    why: FloatArray,
) -> None:
    train, warmup, smooth, share, memory = settings
    p = values.shape[1]
    z = np.empty(p)
    pull = np.empty(p)
    for i in range(rows.shape[0]):
        cell = cells[rows[i], 0]
        some = False
        for j in range(p):
            x = values[i, j]
            if x == x:
                some = True
                # the mean of all values so far, until there are 1/smooth of them
                cell.seen[j] += cell.seen[j] < 1_000_000
                cell.smoothed[j] += max(smooth, 1.0 / cell.seen[j]) * (x - cell.smoothed[j])
        if not some:
            raw[i, 0] = math.nan
            continue
        cell.n += cell.n < 1_000_000_000
        decades = t2 = q = 0.0
        if cell.ready:
            for j in range(p):
                z[j] = min(max((cell.smoothed[j] - cell.mean[j]) / cell.sd[j], -FAR), FAR)
                if cell.seen[j] == 0:
                    z[j] = 0.0
                pull[j] = 0.0
            for c in range(p):
                y = 0.0
                for j in range(p):
                    y += cell.white[c, j] * z[j]
                for j in range(p):
                    pull[j] += cell.white[c, j] * y
                if c < cell.principal:
                    t2 += y * y
                else:
                    q += y * y
            n = max(min(cell.learned, memory if train == 0 else train) * smooth / (2.0 - smooth), p + 2.0)
            f = (t2 + q) * n * (n - p) / (p * (n + 1.0) * (n - 1.0))
            decades = min(-math.log10(max(f_beyond(f, float(p), n - p), 1e-300)), MOST)
            decades = max(decades, 0.0)
            raw[i, 0] = decades if train > 0 else math.sqrt(max(f, 0.0))
            first = second = -1
            for j in range(p):
                if first < 0 or z[j] * pull[j] > z[first] * pull[first]:
                    first, second = j, first
                elif second < 0 or z[j] * pull[j] > z[second] * pull[second]:
                    second = j
            why[i, 0, 0], why[i, 0, 1] = t2, q
            why[i, 0, 2], why[i, 0, 3], why[i, 0, 4] = first, z[first], cell.smoothed[first]
            why[i, 0, 5], why[i, 0, 6] = cell.mean[first], cell.sd[first]
            why[i, 0, 7] = second
            if second >= 0:
                why[i, 0, 8] = z[second]
        if train > 0 and cell.ready:
            continue
        # the first few smoothed values are means of few readings: not yet what will be usual
        if cell.n * smooth < 1.0 and train == 0 and cell.n < warmup:
            continue
        cell.learned += cell.learned < 1_000_000_000
        weight = 1.0 / cell.learned
        if train == 0 and cell.ready:
            weight = max(weight, 1.0 / memory)
            if decades > GATE:
                # and however far it is, it widens no component by more than 0.9 p weight: no spike blinds
                weight *= 0.1 * min(1.0, 9.0 * p / (t2 + q))
        _learn(cell, weight)
        if train > 0:
            if cell.n >= train:
                _decompose(cell, share)
                cell.ready = 1
        elif cell.n >= warmup and (not cell.ready or cell.n % RENEW == 0):
            _decompose(cell, share)
            cell.ready = 1


class PcaDetector(CellDetector):
    """See the module."""

    name: ClassVar[str] = "pca"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = PcaConfig
    per_field: ClassVar[bool] = False
    evidence: ClassVar[tuple[str, ...]] = (
        "t2",
        "q",
        "first",
        "first_sds",
        "first_now",
        "first_mean",
        "first_sd",
        "second",
        "second_sds",
    )
    config: PcaConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        p = len(self.fields)
        vector, matrix = ("<f8", (p,)), ("<f8", (p, p))
        return np.dtype(
            [
                ("n", "<i4"),
                ("learned", "<i4"),
                ("ready", "<i4"),
                ("principal", "<i4"),
                ("seen", "<i4", (p,)),
                ("smoothed", *vector),
                ("mean", *vector),
                ("sd", *vector),
                ("cov", *matrix),
                ("white", *matrix),
            ]
        )

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        config = self.config
        settings = (config.train, config.warmup, config.smooth, config.share, config.memory)
        _run(cells, rows, values, settings, raw, why)

    def calibrated(self, tails: Any, rows: RowArray, raw: FloatArray) -> FloatArray:
        """See `CellDetector.calibrated`; after a clean start the raw score is the surprise."""
        return np.maximum(raw, 0.0) if self.config.train else super().calibrated(tails, rows, raw)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        first, sds = self.fields[int(evidence["first"])], evidence["first_sds"]
        side = "above" if sds > 0 else "below"
        text = (
            f"the fields don't go together as usual (T² {evidence['t2']:.3g}, Q {evidence['q']:.3g}): "
            f"most of all {first}, smoothed {evidence['first_now']:.6g}, {abs(sds):.3g} sd {side} "
            f"the usual {evidence['first_mean']:.6g} ± {evidence['first_sd']:.3g}"
        )
        if evidence["second"] >= 0:
            text += f", then {self.fields[int(evidence['second'])]} by {evidence['second_sds']:+.3g} sd"
        return text
