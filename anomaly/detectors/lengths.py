"""How long things usually last: a history of lengths, and how rare one as long as this is.

For detectors whose strangeness is a length that grows (a value that stands still, a gap in time). The raw
scores of such a stand are many and alike, one a reading, so counting them as `anomaly.calibration` does would
let a single stand become usual while it lasts. Here each length counts once, when it has ended:

    P(length >= L) = share of past lengths that reached L, half of one at least
    beyond the longest, m:  times (m / L)^a, with a by Hill's estimator over the longest tenth

The estimate of `a` is drawn towards PRIOR_SHAPE and never above MOST_SHAPE, so that few or equal lengths
don't make the first longer one an impossibility.

Source: B. Hill, "A simple general approach to inference about the tail of a distribution" (Annals of
Statistics 3, 1975).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from anomaly.compiled import compiled

#: Bins, bins an octave, and the exponent of two at which the first begins: 2^-8 to 2^24.
BINS = 64
PER_OCTAVE = 2
LOWEST = -8
#: When so many lengths are counted, all counts are halved.
HORIZON = 20_000.0
#: Lengths of a bin that has faded to this no longer say what the longest is.
FADED = 0.25
PRIOR_SHAPE = 2.0
PRIOR_WEIGHT = 5.0
MOST_SHAPE = 6.0
#: No surprise is above this.
MOST = 15.0

#: The history of one sensor and field: 272 bytes.
LENGTHS: np.dtype[Any] = np.dtype([("n", "<f8"), ("longest", "<f8"), ("counts", "<f4", (BINS,))])


@compiled
def _place(length: float) -> float:
    """Return the place of a length on the axis of bins, from 0 to just under BINS."""
    place = (math.log2(max(length, 1e-30)) - LOWEST) * PER_OCTAVE
    return float(min(max(place, 0.0), BINS - 1e-6))


@compiled
def count_length(past: Any, length: float, weight: float) -> None:
    """Count a length that has ended.

    Args:
        past: a record of `LENGTHS`, changed.
        length: above 0.
        weight: 1, or less for one that was an anomaly.
    """
    if past.n >= HORIZON:
        past.n = 0.0
        last = 0
        for b in range(BINS):
            past.counts[b] *= np.float32(0.5)
            past.n += past.counts[b]
            if past.counts[b] >= FADED:
                last = b
        # not halved itself: what is usual would be beyond it
        past.longest = min(past.longest, 2.0 ** ((last + 1) / PER_OCTAVE + LOWEST))
    past.counts[int(_place(length))] += np.float32(weight)
    past.n += weight
    if length > past.longest:
        past.longest += weight * (length - past.longest)


@compiled
def length_surprise(past: Any, length: float) -> float:
    """Return -log10 P(a length is this long or longer), by the past, from 0 to MOST."""
    if past.n <= 0.0:
        return 0.0
    place = _place(min(length, past.longest))
    b = int(place)
    counts = past.counts
    above = counts[b] * (1.0 - (place - b))
    for i in range(b + 1, BINS):
        above += counts[i]
    if length < past.longest:
        return float(-math.log10(min((above + 0.5) / (past.n + 1.0), 1.0)))
    # beyond the longest: the longest tenth says how fast the tail falls
    many, logs, start = 0.0, 0.0, BINS
    while start > 0 and many < 0.1 * past.n:
        start -= 1
        many += counts[start]
    for i in range(start, BINS):
        logs += counts[i] * (i - start) * (math.log(2.0) / PER_OCTAVE)
    shape = (many + PRIOR_WEIGHT) / (logs + PRIOR_WEIGHT / PRIOR_SHAPE)
    decades = math.log10(2.0 * (past.n + 1.0))
    decades += min(shape, MOST_SHAPE) * math.log10(length / past.longest)
    return float(min(decades, MOST))
