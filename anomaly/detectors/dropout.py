"""Dropout: a gap in time longer than usual, or a value that falls to where a broken sensor falls.

What it finds: readings that come late by the sensor's own measure, a field that was missing for a while, and
values that jump to a sentinel (0, -1, -999, or exactly the lowest ever seen) which they are rarely at. The
reading after the gap carries the score; who is silent *now* is told by `silent_after`. When it misleads: a
process that is really switched off for the first time falls to 0 as well; a sensor that sends only what
changes has gaps by nature, and its long ones must be met a few times before they are usual.

For each sensor and field, gaps are measured in usual gaps and steps in usual steps (exponentially weighted
means of those above 0, long ones clipped). With the past gaps and steps as histories of lengths
(`anomaly.detectors.lengths`):

    score = -log10 P(a gap is as long as this), or
            -log10 P(a step is as long as this)      of a strange step to a sentinel, while the value stays
                                                     there, if it was there in less than 1% of the readings

whichever is larger, in decades; 0 for gaps and steps below `at_least` usual ones. What is far beyond the
threshold counts a tenth in the past: a second dropout is found like the first, and what goes on for days is
usual in the end. A reading that is late (older than the newest) has no gap, unless ten in a row are: then the
clock was set back.

Cost: 0.07 us a reading and field.

    >>> import numpy as np
    >>> detector = DropoutDetector(DropoutConfig(), ("pressure",))
    >>> rows, ts = np.zeros(400, np.int32), 10 * np.arange(400.0)
    >>> values = 1013 + np.sin(np.arange(400.0))[:, None]
    >>> values[350:353], ts[380:] = 0, ts[380:] + 300
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> explain(351, 0)
    'went from 1012.72 to 0, 1.66e+03 times its usual step, and was there in 0.0% of the readings before'
    >>> explain(380, 0)
    'came 310 s after the one before; the usual gap is 10 s, the longest was of 10 s'
    >>> np.flatnonzero(scores[:, 0] >= 4).tolist()
    [350, 351, 352, 380]
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np

from anomaly.compiled import compiled
from anomaly.detectors.direct import DirectDetector
from anomaly.detectors.frame import CellConfig
from anomaly.detectors.lengths import LENGTHS, count_length, length_surprise

if TYPE_CHECKING:
    from anomaly.detector import DetectorConfig, FloatArray, RowArray

#: The usual gap and step are averages over about so many, each clipped at CLIP times the usual.
MEMORY = 500
CLIP = 10.0
#: What counts in the past of what is at twice the threshold, or beyond; at the threshold it counts whole. If
#: all that is anomalous counted a tenth, what comes once in 10,000 would be taken for ten times as rare.
DISTRUST = 0.1
#: A sentinel is usual where the value was there in this share of the readings; about so many are remembered.
USUAL_SHARE = 0.01
HORIZON = 20_000.0
#: So many readings in a row that are older than the newest say that the clock was set back.
SET_BACK = 10
#: Sentinels that a configuration can name.
MOST_SENTINELS = 16


class DropoutConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `dropout`.

    Args:
        at_least: a shorter gap or step, in usual ones, is never anomalous.
        sentinels: values that stand for "none"; the lowest ever seen always counts as one.
    """

    at_least: float = 3.0
    sentinels: list[float] = msgspec.field(default_factory=lambda: [0.0, -1.0, -999.0])

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if not 1 < self.at_least <= 1e6:
            faults["at_least"] = f"{self.at_least} is not above 1, and at most 1e6"
        if len(self.sentinels) > MOST_SENTINELS:
            faults["sentinels"] = f"{len(self.sentinels)} are more than {MOST_SENTINELS}: leave some out"
        elif not all(map(math.isfinite, self.sentinels)):
            faults["sentinels"] = f"{self.sentinels} are not all numbers: leave out NaN and inf"
        return faults


@compiled
def _usual(usual: float, length: float, n: int) -> float:
    """Return what is usual after one more; n counts it, up to MEMORY."""
    if n > 1:
        length = min(length, CLIP * usual)
    return usual + (length - usual) / n


@compiled
def _weight(decades: float, threshold: float) -> float:
    """Return what a gap or step of this surprise counts in the past."""
    return float(DISTRUST ** min(max(decades / threshold - 1.0, 0.0), 1.0))


@compiled
def _gap(cell: Any, at: float, at_least: float, threshold: float, warmup: int) -> tuple[float, float]:
    """Learn the time of a reading; return the gap before it in seconds, and its surprise."""
    gap = at - cell.ts
    if gap < 0.0:
        cell.late += 1
        if cell.late >= SET_BACK:
            cell.ts = at
            cell.late = 0
        return 0.0, 0.0
    cell.late = 0
    if gap == 0.0:
        return 0.0, 0.0
    cell.ts = at
    decades = 0.0
    if cell.gap_n > 0:
        length = gap / cell.gap
        if length >= at_least:
            decades = length_surprise(cell.gaps, length)
        count_length(cell.gaps, length, _weight(decades, threshold) if cell.n >= warmup else 1.0)
    cell.gap_n = min(cell.gap_n + 1, MEMORY)
    cell.gap = _usual(cell.gap, gap, cell.gap_n)
    return gap, decades


@compiled
def _step(cell: Any, x: float, at_least: float, threshold: float, warmup: int) -> None:
    """Learn the step to a value. After a strange one the cell is `away`, until the value leaves."""
    if cell.away > 0 and x == cell.value:
        return
    step = abs(x - cell.value)
    if cell.away > 0:
        # back to where it was, or on from where it went
        step = min(step, abs(x - cell.home))
    decades = 0.0
    if step > 0.0:
        if cell.step_n > 0:
            length = step / cell.step
            if length >= at_least:
                decades = length_surprise(cell.steps, length)
            count_length(cell.steps, length, _weight(decades, threshold) if cell.n >= warmup else 1.0)
            if decades >= threshold:
                cell.far = length
        cell.step_n = min(cell.step_n + 1, MEMORY)
        cell.step = _usual(cell.step, step, cell.step_n)
    if decades < threshold:
        cell.away = 0
        return
    if cell.away == 0:
        cell.home = cell.value
    cell.away = 1
    cell.decades = decades


@compiled
def _fallen(cell: Any, x: float, sentinels: FloatArray) -> float:
    """Count a value that is at a sentinel; return the share of readings there if it is rare, else -1."""
    if cell.seen >= HORIZON:
        cell.seen *= 0.5
        for k in range(cell.met.shape[0]):
            cell.met[k] *= 0.5
    which = -1
    lowest = sentinels.shape[0]
    for k in range(lowest):
        if x == sentinels[k]:
            which = k
    if cell.seen > 0.0 and x == cell.lowest and which < 0:
        which = lowest
    if cell.seen == 0.0 or x < cell.lowest:
        cell.lowest = x
        # the place of a sentinel that is the lowest is its own
        cell.met[lowest] = 1.0 if which < 0 else 0.0
    share = -1.0
    if which >= 0:
        share = cell.met[which] / max(cell.seen, 1.0)
        if share >= USUAL_SHARE:
            share = -1.0
        cell.met[which] += DISTRUST if share >= 0.0 and cell.away > 0 else 1.0
    cell.seen += 1.0
    return float(share)


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    warmup: int,
    at_least: float,
    sentinels: FloatArray,
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
            longest, usual_gap = cell.gaps.longest, cell.gap
            gap, late, fallen = 0.0, 0.0, 0.0
            if cell.n > 0:
                gap, late = _gap(cell, ts[i], at_least, threshold, warmup)
                _step(cell, x, at_least, threshold, warmup)
            else:
                cell.ts = ts[i]
            share = _fallen(cell, x, sentinels)
            if cell.away > 0 and share >= 0.0:
                fallen = cell.decades
            if cell.n >= warmup:
                raw[i, j] = max(late, fallen)
                if fallen > late:
                    why[i, j, 0], why[i, j, 1], why[i, j, 2] = cell.home, x, cell.far
                    why[i, j, 3] = share
                else:
                    why[i, j, 4], why[i, j, 5], why[i, j, 6] = gap, usual_gap, longest * usual_gap
            if cell.n < 1 << 30:
                cell.n += 1
            cell.value = x


class DropoutDetector(DirectDetector):
    """See the module."""

    name: ClassVar[str] = "dropout"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = DropoutConfig
    evidence: ClassVar[tuple[str, ...]] = ("from", "to", "steps", "share", "gap_s", "usual_s", "longest_s")
    config: DropoutConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        return np.dtype(
            [
                ("n", "<i4"),
                ("late", "<i4"),  # readings in a row that are older than the newest
                ("gap_n", "<i4"),
                ("step_n", "<i4"),
                ("away", "<i4"),  # 1 after a strange step, while the value stays there
                ("ts", "<f8"),
                ("gap", "<f8"),  # usual, in seconds
                ("step", "<f8"),  # usual, in the field's unit
                ("value", "<f8"),
                ("home", "<f8"),  # the value before the strange step
                ("far", "<f8"),  # the strange step, in usual ones, and its surprise
                ("decades", "<f8"),
                ("lowest", "<f8"),
                ("seen", "<f8"),
                ("met", "<f8", (len(self.config.sentinels) + 1,)),
                ("gaps", LENGTHS),
                ("steps", LENGTHS),
            ]
        )

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        config = self.config
        sentinels = np.array(config.sentinels, np.float64)
        settings = (config.warmup, config.at_least, sentinels, math.log10(config.once_in))
        _run(cells, rows, values, ts, *settings, raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        if evidence["steps"] > 0:
            return (
                f"went from {evidence['from']:.6g} to {evidence['to']:.6g}, {evidence['steps']:.3g} times "
                f"its usual step, and was there in {evidence['share']:.1%} of the readings before"
            )
        return (
            f"came {evidence['gap_s']:.4g} s after the one before; the usual gap is "
            f"{evidence['usual_s']:.3g} s, the longest was of {evidence['longest_s']:.3g} s"
        )
