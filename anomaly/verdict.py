"""From the scores of all fields to one verdict for each reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.detector import FloatArray


@dataclass(slots=True)
class Verdict:
    """What is said of each of n readings.

    Attributes:
        scores: float64 [n, k], as the detector gave them.
        thresholds: float64 [k], or [n, k] where sensors have their own.
        field: intp [n], the score column that is largest against its threshold.
        score: float64 [n], the score of that column; NaN where no column has one.
        ratio: float64 [n], that score over its threshold; NaN likewise.
        is_anomaly: bool [n], whether the score is at or above its threshold, or the value beyond a limit.
        limit: float64 [n], the limit that the value of `field` is beyond, NaN where it is none; None: there
            are no limits.
    """

    scores: FloatArray
    thresholds: FloatArray
    field: NDArray[np.intp]
    score: FloatArray
    ratio: FloatArray
    is_anomaly: NDArray[np.bool_]
    limit: FloatArray | None = None

    def score_of(self, index: int, field: int) -> float:
        """Return the score of a field in a reading; a joint score is that of all fields."""
        return float(self.scores[index, min(field, self.scores.shape[1] - 1)])

    def threshold_of(self, index: int, field: int) -> float:
        """Return the threshold that held for it."""
        column = min(field, self.thresholds.shape[-1] - 1)
        return float(self.thresholds[column] if self.thresholds.ndim == 1 else self.thresholds[index, column])

    def limit_of(self, index: int) -> float | None:
        """Return the limit that the reading is beyond, None if it is within."""
        limit = None if self.limit is None else float(self.limit[index])
        return None if limit is None or limit != limit else limit


def judge(scores: FloatArray, thresholds: FloatArray) -> Verdict:
    """Find the worst field of each reading.

    Args:
        scores: float64 [n, k], NaN where there is none.
        thresholds: float64 [k], positive.
    """
    return _judge(scores, thresholds, thresholds)


def judge_each(
    scores: FloatArray, thresholds: FloatArray, values: FloatArray, limits: Limits | None = None
) -> Verdict:
    """Find the worst field of each reading, where sensors have their own thresholds.

    Beyond a limit a reading is anomalous whatever its score: its ratio is 1 and the distance to the limit in
    spans, so that it worsens with the distance.

    Args:
        scores: float64 [n, k], NaN where there is none.
        thresholds: float64 [n, k], positive.
        values: float64 [n, fields], what the limits are about.
        limits: of each reading.
    """
    verdict = _judge(scores, thresholds, np.ascontiguousarray(thresholds.T))
    if limits is None:
        return verdict
    verdict.limit = np.full(len(scores), np.nan)
    ratio, field = verdict.ratio, verdict.field
    for j in range(values.shape[1]):
        x, low, high = values[:, j], limits.low[:, j], limits.high[:, j]
        over = np.fmax(x - high, low - x) / limits.span[:, j]
        beyond = over > 0
        worse = beyond & ~(ratio >= 1 + over)
        if worse.any():
            np.copyto(ratio, 1 + over, where=worse)
            np.copyto(field, j, where=worse)
            np.copyto(verdict.limit, np.where(x > high, high, low), where=worse)
    beyond = ~np.isnan(verdict.limit)
    if beyond.any():
        columns = np.minimum(field, scores.shape[1] - 1)
        verdict.score = np.where(beyond, scores[np.arange(len(scores)), columns], verdict.score)
        verdict.is_anomaly = ratio >= 1
    return verdict


class Limits(NamedTuple):
    """float64 [n, fields] each: limits in the unit, NaN for none, and the distance that counts as 1."""

    low: FloatArray
    high: FloatArray
    span: FloatArray


def _judge(scores: FloatArray, thresholds: FloatArray, divisors: FloatArray) -> Verdict:
    """Judge by one threshold a column, `divisors` [k], or one a reading, [k, n]."""
    n, k = scores.shape
    columns = np.ascontiguousarray(scores.T)
    field = np.zeros(n, np.intp)
    ratio = columns[0] / divisors[0]
    gaps = bool(np.isnan(columns.max(initial=-np.inf)))
    # column by column, and without a branch a reading: an argmax along an axis of 3 is six times as slow
    for j in range(1, k):
        other = columns[j] / divisors[j]
        worse = other > ratio
        if gaps:
            worse |= np.isnan(ratio) & ~np.isnan(other)
        np.maximum(field, np.multiply(worse, j, dtype=np.intp), out=field)
        np.fmax(ratio, other, out=ratio)
    score = columns.ravel().take(field * n + np.arange(n))
    return Verdict(scores, thresholds, field, score, ratio, ratio >= 1)
