"""Thresholds that follow a sensor's own scores: what it reaches about once in n of its recent readings.

For each sensor and score column the threshold q moves with every score s, after it has judged it:

    s >= q, and the score before was not:   q = q e^STEP
    s <  q:                                 q = q e^(-STEP / n)

In the long run the ups and downs balance, so that the scores rise above q once in n readings. A run of
scores above it counts once: a long anomaly is no reason to be blind to it. q stays between half and eight
times the threshold that would hold otherwise. About n / STEP readings are remembered.

This is the stochastic approximation of a quantile (H. Robbins, S. Monro, "A stochastic approximation method",
1951), on a logarithmic scale. Cost: 5 ns a reading and column.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly.compiled import compiled

if TYPE_CHECKING:
    from anomaly.detector import FloatArray, RowArray

STEP = 0.2
#: How far the threshold may move from the one that would hold otherwise, down and up.
LEAST, MOST = 0.5, 8.0


def follower_dtype(columns: int) -> np.dtype[Any]:
    """Return the state of one sensor; all zero means never seen."""
    return np.dtype([("q", "<f8", (columns,)), ("above", "u1", (columns,))])


def follow(
    state: Any, rows: RowArray, scores: FloatArray, base: FloatArray, once_in: FloatArray
) -> FloatArray:
    """Judge readings by thresholds that follow their sensors.

    Args:
        state: structured [sensors] of `follower_dtype(k)`, changed in place.
        rows: int32 [n], the sensor of each reading, in log order.
        scores: float64 [n, k]; NaN and 0 (no value, warm-up) teach nothing.
        base: float64 [n, k], what would hold otherwise.
        once_in: float64 [n, k], 0 where the threshold does not follow.

    Returns:
        float64 [n, k], the threshold that each score is held against.
    """
    out = base.copy()
    _follow(state["q"], state["above"], rows, scores, once_in, out)
    return out


@compiled
def _follow(
    q: Any, above: Any, rows: RowArray, scores: FloatArray, once_in: FloatArray, out: FloatArray
) -> None:
    for i in range(rows.shape[0]):
        row = rows[i]
        for j in range(scores.shape[1]):
            n = once_in[i, j]
            if n <= 0.0:
                continue
            base = out[i, j]
            mine = q[row, j]
            if mine == 0.0:
                mine = base
            mine = min(max(mine, LEAST * base), MOST * base)
            out[i, j] = mine
            s = scores[i, j]
            if s > 0.0:
                if s >= mine:
                    if above[row, j] == 0:
                        mine *= math.exp(STEP)
                    above[row, j] = 1
                else:
                    mine *= math.exp(-STEP / n)
                    above[row, j] = 0
            q[row, j] = mine
