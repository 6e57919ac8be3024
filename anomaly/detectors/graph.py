"""Sensor graph: each field predicted from its neighbours, the graph learned.

What it finds: a field that no longer goes with those that it goes with, and it names that field, what its
neighbours made of it and what it read. A fault of one field is largest in that field: seen from a neighbour
it is smaller by their partial correlation (so of two fields that only have each other, nobody can tell which
is wrong). When it misleads: relations are taken as straight lines and
without delay; what all fields do together is no fault here; a lasting fault is learned. A field without
value is taken to be as it was last.

With the mean m, the correlation R (exponentially weighted) and its inverse P of the fields' deviations
z = (x - m) / sd, two fields are neighbours where their partial correlation

    -P_jk / sqrt(P_jj P_kk)

is at least 0.1 and 3 standard errors in size, the `neighbours` strongest of each field. It is predicted from
those alone, by least squares; the raw score is the largest residual over all fields that have a value, in its
standard deviations. Strange readings weigh less in what is learned: by (4 / deviation)².

With `train`, the model stays as it is after so many readings, and the score is -log10 of the probability of
such a residual in any field, by Student's t: right where residuals are normal and readings independent. With
`smooth` below 1 the fields are smoothed first, as in `pca`: small lasting faults are seen, spikes are not.

Cost: 0.2 us a reading of 8 fields, 0.12 of 3. State: 1.4 KB a sensor of 8 fields. Source: A. Dempster,
"Covariance selection" (Biometrics 28, 1972); the neighbours are cut off at a level, not by a lasso.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> load = rng.normal(0, 1, 600)
    >>> values = np.stack([10 + load, 20 + 2 * load], 1) + rng.normal(0, 0.1, (600, 2))
    >>> values[599] = 11, 20
    >>> detector = GraphDetector(GraphConfig(), ("speed", "flow"))
    >>> rows, ts = np.zeros(600, np.int32), np.arange(600.0)
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> explain(599, 0).partition(";")[0]
    'speed is 11, 8.78 sd above the 10.005 ± 0.113 that go with flow 20'
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.calibration import MOST
from anomaly.compiled import compiled
from anomaly.detectors.frame import CellConfig, CellDetector
from anomaly.detectors.symmetric import f_beyond, sweep

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray

#: The graph is made anew after so many readings.
RENEW = 32
#: A reading that deviates by more standard deviations is learned from with less weight.
GATE = 4.0
#: The least partial correlation of neighbours, and in standard errors.
LEAST, ERRORS = 0.1, 3.0
#: Added to the diagonal of the correlation, so that copies of a field don't divide by zero.
RIDGE = 1e-6
#: Standard deviations at which a field is cut off, so that squares stay finite.
FAR = 1e6
#: Readings before their spread is trusted to tell a strange one.
FEW = 20


class GraphConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `graph`.

    Args:
        train: readings of a clean start, after which the model stays as it is; 0: it keeps learning.
        smooth: weight of a new reading in the smoothed fields; 1: they are not smoothed.
        neighbours: that a field is predicted from, at most.
        memory: readings that are remembered where the model keeps learning.
    """

    train: int = 0
    smooth: float = 1.0
    neighbours: int = 4
    memory: int = 2_000

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if self.train and not 20 <= self.train <= 1_000_000:
            faults["train"] = f"{self.train} is not 0 and not in [20, 1000000]"
        if not 0.001 <= self.smooth <= 1:
            faults["smooth"] = f"{self.smooth} is not in [0.001, 1]"
        if not 1 <= self.neighbours <= 32:
            faults["neighbours"] = f"{self.neighbours} is not in [1, 32]"
        if not 20 <= self.memory <= 1_000_000:
            faults["memory"] = f"{self.memory} is not in [20, 1000000]"
        return faults


@compiled
def _spread(cell: Any, j: int) -> float:
    """Return the standard deviation of a field, at least the rounding of its values."""
    return float(max(math.sqrt(max(cell.cov[j, j], 0.0)), 1e-9 * abs(cell.mean[j]), 1e-100))


@compiled
def _connect(cell: Any, independent: float) -> None:
    """Make the graph from the covariance, as learned from so many independent readings."""
    p, most = cell.near.shape
    correlation = np.empty((p, p))
    for j in range(p):
        cell.sd[j] = _spread(cell, j)
    for j in range(p):
        for k in range(p):
            r = cell.cov[j, k] / cell.sd[j] / cell.sd[k]
            correlation[j, k] = min(max(r, -1.0), 1.0) if j != k else 1.0 + RIDGE
    precision = correlation.copy()
    for k in range(p):
        sweep(precision, k)
    strength = np.empty(p)
    least = max(LEAST, ERRORS / math.sqrt(independent))
    for j in range(p):
        for k in range(p):
            strength[k] = abs(precision[j, k]) / math.sqrt(precision[j, j] * precision[k, k])
        strength[j] = 0.0
        m = 0
        while m < most:
            best = np.argmax(strength)
            if not strength[best] >= least:
                break
            cell.near[j, m] = best
            strength[best] = 0.0
            m += 1
        cell.degree[j] = m
        part = np.empty((m + 1, m + 1))
        for a in range(m + 1):
            for b in range(m + 1):
                part[a, b] = correlation[cell.near[j, a] if a < m else j, cell.near[j, b] if b < m else j]
        for a in range(m):
            sweep(part, a)
        for a in range(m):
            cell.weight[j, a] = part[a, m]
        # new readings are met by coefficients that the old ones have fitted
        left = max(part[m, m], RIDGE) * independent / max(independent - m - 1.0, 1.0)
        cell.left[j] = math.sqrt(left)


@compiled
def _learn(cell: Any, weight: float) -> None:
    p = cell.mean.shape[0]
    for j in range(p):
        dj = cell.now[j] - cell.mean[j] if cell.seen[j] > 0 else 0.0
        for k in range(j + 1):
            dk = cell.now[k] - cell.mean[k] if cell.seen[k] > 0 else 0.0
            cell.cov[j, k] = cell.cov[k, j] = (1.0 - weight) * (cell.cov[j, k] + weight * dj * dk)
    for j in range(p):
        if cell.seen[j] > 0:
            cell.mean[j] += weight * (cell.now[j] - cell.mean[j])


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    settings: tuple[int, int, float, int],
    raw: FloatArray,
    why: FloatArray,
) -> None:
    train, warmup, smooth, memory = settings
    p = values.shape[1]
    z = np.empty(p)
    for i in range(rows.shape[0]):
        cell = cells[rows[i], 0]
        some = False
        for j in range(p):
            x = values[i, j]
            if x == x:
                some = True
                if cell.seen[j] == 0:
                    # nothing is known of it: what it begins with is usual
                    cell.mean[j] = x
                cell.seen[j] += cell.seen[j] < 1_000_000
                cell.now[j] += max(smooth, 1.0 / cell.seen[j]) * (x - cell.now[j])
        if not some:
            raw[i, 0] = math.nan
            continue
        cell.n += cell.n < 1_000_000_000
        strangest = 0.0
        independent = max(min(cell.learned, memory if train == 0 else train) * smooth / (2.0 - smooth), 3.0)
        if cell.ready:
            for j in range(p):
                z[j] = 0.0
                if cell.seen[j] > 0:
                    z[j] = min(max((cell.now[j] - cell.mean[j]) / cell.sd[j], -FAR), FAR)
            worst, residual, predicted = -1, 0.0, 0.0
            for j in range(p):
                if values[i, j] == values[i, j]:
                    made = 0.0
                    for a in range(cell.degree[j]):
                        made += cell.weight[j, a] * z[cell.near[j, a]]
                    r = (z[j] - made) / cell.left[j]
                    if worst < 0 or abs(r) > abs(residual):
                        worst, residual, predicted = j, r, made
            strangest = abs(residual)
            raw[i, 0] = strangest
            if train > 0:
                under = max(independent - cell.degree[worst] - 1.0, 1.0)
                chance = p * f_beyond(residual * residual, 1.0, under)
                raw[i, 0] = min(max(-math.log10(max(chance, 1e-300)), 0.0), MOST)
            why[i, 0, 0], why[i, 0, 1], why[i, 0, 2] = worst, cell.now[worst], residual
            why[i, 0, 3] = cell.mean[worst] + predicted * cell.sd[worst]
            why[i, 0, 4] = cell.left[worst] * cell.sd[worst]
            for a in range(3):
                there = a < cell.degree[worst]
                why[i, 0, 5 + 2 * a] = cell.near[worst, a] if there else -1
                why[i, 0, 6 + 2 * a] = cell.now[cell.near[worst, a]] if there else 0.0
        if train > 0 and cell.ready:
            continue
        if cell.learned >= FEW:
            for j in range(p):
                if cell.seen[j] > 0:
                    strangest = max(strangest, abs(cell.now[j] - cell.mean[j]) / _spread(cell, j))
        cell.learned += cell.learned < 1_000_000_000
        weight = 1.0 / cell.learned
        if train == 0:
            weight = max(weight, 1.0 / memory)
            if strangest > GATE:
                weight *= (GATE / min(strangest, FAR)) ** 2
        _learn(cell, weight)
        if cell.n >= (train if train > 0 else warmup) and (not cell.ready or cell.n % RENEW == 0):
            _connect(cell, independent)
            cell.ready = 1


class GraphDetector(CellDetector):
    """See the module."""

    name: ClassVar[str] = "graph"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = GraphConfig
    per_field: ClassVar[bool] = False
    evidence: ClassVar[tuple[str, ...]] = (
        "field",
        "now",
        "sds",
        "expected",
        "sd",
        "near_1",
        "now_1",
        "near_2",
        "now_2",
        "near_3",
        "now_3",
    )
    config: GraphConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        p = len(self.fields)
        most = max(min(self.config.neighbours, p - 1), 1)
        vector = ("<f8", (p,))
        return np.dtype(
            [
                ("n", "<i4"),
                ("learned", "<i4"),
                ("ready", "<i4"),
                ("seen", "<i4", (p,)),
                ("degree", "<i4", (p,)),  # neighbours of each field
                ("near", "<i4", (p, most)),  # which, the strongest first
                ("weight", "<f8", (p, most)),  # of their z in the z of the field
                ("left", *vector),  # standard deviation of the residual, of 1 for the field
                ("now", *vector),
                ("mean", *vector),
                ("sd", *vector),
                ("cov", "<f8", (p, p)),
            ]
        )

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        config = self.config
        _run(cells, rows, values, (config.train, config.warmup, config.smooth, config.memory), raw, why)

    def calibrated(self, tails: Any, rows: RowArray, raw: FloatArray) -> FloatArray:
        """See `CellDetector.calibrated`; after a clean start the raw score is the surprise."""
        return np.maximum(raw, 0.0) if self.config.train else super().calibrated(tails, rows, raw)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        field, sds = self.fields[int(evidence["field"])], evidence["sds"]
        side = "above" if sds > 0 else "below"
        reads = f"{field} is {evidence['now']:.6g}, {abs(sds):.3g} sd {side}"
        usual = f"{evidence['expected']:.6g} ± {evidence['sd']:.3g}"
        near = [
            f"{self.fields[int(evidence[f'near_{a}'])]} {evidence[f'now_{a}']:.6g}"
            for a in (1, 2, 3)
            if evidence[f"near_{a}"] >= 0
        ]
        if not near:
            return f"{reads} the usual {usual}"
        return f"{reads} the {usual} that go with {', '.join(near)}"
