"""NAB's `windowedGaussian` detector, made again to check our scoring against its published score.

The score is the probability that a value of a normal distribution lies nearer to the mean; mean and standard
deviation are those of the last 6,400 values, renewed with each value until so many have been seen and every
100 values from then on.

Source: the detector of this name in A. Lavin, S. Ahmad, "Evaluating real-time anomaly detection algorithms:
the Numenta anomaly benchmark" (ICMLA 2015); published: 39.6 in the standard profile on all 58 files.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anomaly.detector import FloatArray


def windowed_gaussian(values: FloatArray, window: int = 6400, step: int = 100) -> FloatArray:
    """Return float64 [n], from 0.5 (usual) to 1 (strange); 0 for the first value.

    Args:
        values: float64 [n].
        window: how many values mean and standard deviation are taken of.
        step: how many values a full window waits before it moves on by as many.
    """
    scores = np.zeros(len(values))
    mean, deviation = 0.0, 1.0
    for i in range(1, len(values)):
        if i <= window or (i - window) % step == 0:
            past = values[max(0, i - window) : i]
            mean, deviation = float(past.mean()), float(past.std()) or 1e-6
        scores[i] = 1.0 - 0.5 * math.erfc(abs(values[i] - mean) / deviation / 1.4142)
    return scores
