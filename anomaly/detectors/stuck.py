"""Stuck value: one that stands still for longer than it usually does.

What it finds: a sensor that froze, or that a gateway keeps repeating; also one that still shivers, but by
far less than it used to move. When it misleads: a process that really rests for the first time (a plant shut
down) looks the same; a sensor that never moves has no usual stand and is never flagged; one that is sampled
more often than before has longer stands in readings. Sensors that usually stand still (switches, set
points) have long stands in their past and are judged by them.

A *stand* is a run of readings that stay within `tolerance` of its first one, in units of the usual step when
it began (the exponentially weighted mean of the steps that are not 0, the longest clipped): so the resolution
is learned.
With the lengths of past stands, each counted when it ends (`anomaly.detectors.lengths`):

    score = -log10 P(a stand is as long as this or longer)      decades; 0 below `at_least` readings

so 4 is a stand as it comes once in 10,000 stands. A stand that was anomalous counts a tenth in the past, so
that the second one is found too.

Cost: 0.02 us a reading and field that moves.

    >>> import numpy as np
    >>> detector = StuckDetector(StuckConfig(), ("temperature",))
    >>> rows, ts = np.zeros(400, np.int32), np.arange(400.0)
    >>> values = 20 + np.sin(np.arange(400.0))[:, None]
    >>> values[360:] = 20.5
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> explain(399, 0)
    'stands at 20.5 for 40 readings (39 s); the longest stand before was of 2 readings'
    >>> bool(scores[:360].max() < 4 < scores[399, 0])
    True
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.compiled import compiled
from anomaly.detectors.direct import DirectDetector
from anomaly.detectors.frame import CellConfig
from anomaly.detectors.lengths import LENGTHS, count_length, length_surprise

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray

#: The usual step is an average over about so many steps, each clipped at STEP_CLIP times the usual.
STEPS = 500
STEP_CLIP = 10.0
#: What a stand that was anomalous counts in the past.
DISTRUST = 0.1


class StuckConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `stuck`.

    Args:
        at_least: a shorter stand, in readings, is never anomalous.
        tolerance: what still counts as standing still, in usual steps.
    """

    at_least: int = 10
    tolerance: float = 0.05

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if not 2 <= self.at_least <= 1_000_000:
            faults["at_least"] = f"{self.at_least} is not in [2, 1000000]"
        if not 0 <= self.tolerance <= 1:
            faults["tolerance"] = f"{self.tolerance} is not in [0, 1]"
        return faults


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    warmup: int,
    at_least: int,
    tolerance: float,
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
            if cell.n > 0:
                step = abs(x - cell.last)
                if step > 0.0:
                    if cell.steps > 0:
                        step = min(step, STEP_CLIP * cell.step)
                    if cell.steps < STEPS:
                        cell.steps += 1
                    cell.step += (step - cell.step) / cell.steps
            if cell.n > 0 and abs(x - cell.anchor) <= cell.within:
                cell.run += 1
            else:
                if cell.run > 0:
                    count_length(cell.past, float(cell.run), DISTRUST if cell.strange else 1.0)
                cell.run = 1
                cell.strange = 0
                cell.anchor = x
                # kept for the whole stand: its own small steps shrink the usual step
                cell.within = tolerance * cell.step
                cell.since = ts[i]
            if cell.n >= warmup:
                raw[i, j] = 0.0
                if cell.run >= at_least:
                    raw[i, j] = length_surprise(cell.past, float(cell.run))
                    if raw[i, j] >= threshold:
                        cell.strange = 1
                why[i, j, 0] = cell.anchor
                why[i, j, 1] = cell.run
                why[i, j, 2] = ts[i] - cell.since
                why[i, j, 3] = cell.past.longest
            if cell.n < 1 << 30:
                cell.n += 1
            cell.last = x


class StuckDetector(DirectDetector):
    """See the module."""

    name: ClassVar[str] = "stuck"
    version: ClassVar[str] = "2"
    config_type: ClassVar[type[DetectorConfig]] = StuckConfig
    evidence: ClassVar[tuple[str, ...]] = ("value", "readings", "lasted_s", "longest")
    config: StuckConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        return np.dtype(
            [
                ("n", "<i4"),
                ("steps", "<i4"),
                ("run", "<i4"),
                ("strange", "<i4"),
                ("last", "<f8"),
                ("anchor", "<f8"),
                ("since", "<f8"),
                ("step", "<f8"),
                ("within", "<f8"),
                ("past", LENGTHS),
            ]
        )

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        config = self.config
        threshold = math.log10(config.once_in)
        settings = (config.warmup, config.at_least, config.tolerance, threshold)
        _run(cells, rows, values, ts, *settings, raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        readings, longest = int(evidence["readings"]), round(evidence["longest"])
        plural, before = "s" * (readings != 1), "s" * (longest != 1)
        return (
            f"stands at {evidence['value']:.6g} for {readings} reading{plural} "
            f"({evidence['lasted_s']:.4g} s); the longest stand before was of {longest} reading{before}"
        )
