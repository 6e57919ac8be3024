"""From the scores of all fields to one verdict for each reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.detector import FloatArray


@dataclass(slots=True)
class Verdict:
    """What is said of each of n readings.

    Attributes:
        scores: float64 [n, k], as the detector gave them.
        thresholds: float64 [k].
        field: intp [n], the score column that is largest against its threshold.
        score: float64 [n], the score of that column; NaN where no column has one.
        ratio: float64 [n], that score over its threshold; NaN likewise.
        is_anomaly: bool [n], whether the score is at or above its threshold.
    """

    scores: FloatArray
    thresholds: FloatArray
    field: NDArray[np.intp]
    score: FloatArray
    ratio: FloatArray
    is_anomaly: NDArray[np.bool_]


def judge(scores: FloatArray, thresholds: FloatArray) -> Verdict:
    """Find the worst field of each reading.

    Args:
        scores: float64 [n, k], NaN where there is none.
        thresholds: float64 [k], positive.
    """
    n, k = scores.shape
    columns = np.ascontiguousarray(scores.T)
    field = np.zeros(n, np.intp)
    ratio = columns[0] / thresholds[0]
    gaps = bool(np.isnan(columns.max(initial=-np.inf)))
    # column by column, and without a branch a reading: an argmax along an axis of 3 is six times as slow
    for j in range(1, k):
        other = columns[j] / thresholds[j]
        worse = other > ratio
        if gaps:
            worse |= np.isnan(ratio) & ~np.isnan(other)
        np.maximum(field, np.multiply(worse, j, dtype=np.intp), out=field)
        np.fmax(ratio, other, out=ratio)
    score = columns.ravel().take(field * n + np.arange(n))
    return Verdict(scores, thresholds, field, score, ratio, ratio >= 1)
