"""Calibration: from a detector's raw score to a tail probability that means the same for all detectors.

For each sensor and score column the past raw scores are kept as counts in logarithmic bins (a quarter of an
octave wide). The score that comes out is the *surprise*, in decades:

    surprise = -log10 P(raw score >= this one, by the past of this sensor)

so 3 is met about once in 1,000 readings, 5 once in 100,000, whatever the detector and its unit. In the body
of the distribution the probability is the empirical one. Above a high quantile u a generalised Pareto
distribution (GPD) is fitted to the excesses, which reaches beyond everything seen:

    P(X >= x) = k/n (1 + xi (x - u) / sigma)^(-1/xi)

The fit is to some 50 scores, so what it says of two decades beyond them is uncertain. Its shape is drawn
towards a prior, and raised a little: then 4 decades are met one to three times in 10,000 readings, after
1,000 readings as after 20,000 (normal, exponential, lognormal, t and autoregressive scores; without, up to
six times).

What it assumes: raw scores of the future come as those of the past did. Counts are halved when they reach a
horizon, so that the far past fades. A long anomaly becomes usual after a while, and then surprises less.

Sources: A. Siffer et al., "Anomaly detection in streams with extreme value theory" (KDD 2017), for the peaks
over a threshold; J. Hosking, J. Wallis, "Parameter and quantile estimation for the generalized Pareto
distribution" (Technometrics 29, 1987), for the fit by probability-weighted moments, which needs no iteration.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly.compiled import compiled

if TYPE_CHECKING:
    from anomaly.detector import FloatArray, RowArray

#: Bins an octave, bins in all, and the exponent of two at which the first begins: 2^-14 to 2^10.
PER_OCTAVE = 4
BINS = 96
LOWEST = -14
#: When so many raw scores are counted, all counts are halved.
HORIZON = 32_768
#: Raw scores to count before the first surprise.
WARMUP = 50
#: The tail is the part above this quantile, of at least TAIL_LEAST and about TAIL_MOST scores.
TAIL_SHARE = 0.02
TAIL_LEAST = 10
TAIL_MOST = 50
#: The shape of the tail is drawn towards PRIOR_SHAPE as by so many scores: one fitted to 50 scores is off by
#: 0.15, which two decades beyond them is a factor of four in how often a score comes.
PRIOR_SHAPE = 0.2
PRIOR_WEIGHT = 50.0
#: What is expected of the next score, with a scale that was fitted to k, has a heavier tail than the fit: the
#: shape is raised by this by k.
PREDICTIVE = 2.0
#: A raw score that says "warming up": not counted, its surprise is 0.
NOT_YET = -1.0
#: No surprise is above this, nor reaches further than BEYOND decades beyond the number of scores counted: a
#: short past says little of what is rare.
MOST = 15.0
BEYOND = 1.0

#: One score column of one sensor: 220 bytes.
TAIL: np.dtype[Any] = np.dtype(
    [
        ("n", "<i4"),  # raw scores counted
        ("tail_bin", "<i4"),  # the tail starts at the lower edge of this bin
        ("tail_n", "<i4"),
        ("sigma", "<f8"),  # of the GPD, in raw score
        ("xi", "<f8"),
        ("counts", "<u2", (BINS,)),
    ]
)


@compiled
def bin_of(raw: float) -> float:
    """Return the place of a raw score on the axis of bins, from 0 to just under BINS."""
    if raw <= 0.0:
        return 0.0
    place = (math.log2(raw) - LOWEST) * PER_OCTAVE
    return float(min(max(place, 0.0), BINS - 1e-6))


@compiled
def edge_of(place: float) -> float:
    """Return the raw score at a place on the axis of bins."""
    return float(2.0 ** (place / PER_OCTAVE + LOWEST))


@compiled
def fit_tail(tail: Any) -> None:
    """Choose where the tail begins and fit the GPD to it, by probability-weighted moments."""
    counts = tail.counts
    enough = min(max(float(TAIL_LEAST), TAIL_SHARE * tail.n), float(TAIL_MOST))
    start, above = BINS, 0
    while start > 0 and above < enough:
        start -= 1
        above += counts[start]
    if start == 0 or above == 0:
        tail.tail_bin, tail.tail_n = BINS, 0
        return
    u = edge_of(float(start))
    # mean excess, and the mean of excess times the share of excesses above it
    mean = 0.0
    weighted = 0.0
    higher = 0
    for b in range(BINS - 1, start - 1, -1):
        count = float(counts[b])
        if count > 0.0:
            excess = edge_of(b + 0.5) - u
            mean += count * excess
            weighted += count * excess * (higher + 0.5 * count) / above
            higher += counts[b]
    mean /= above
    weighted /= above
    gap = mean - 2.0 * weighted
    # all alike: they say nothing of heavier tails
    shape = 2.0 - mean / gap if gap > 1e-12 * mean else 0.0
    shape = min(max(shape, -0.5), 0.9)
    shape = (shape * above + PRIOR_SHAPE * PRIOR_WEIGHT) / (above + PRIOR_WEIGHT)
    tail.tail_bin, tail.tail_n = start, above
    # the scale that gives the mean excess seen, with this shape
    tail.sigma = mean * (1.0 - shape)
    tail.xi = shape + PREDICTIVE / above


@compiled
def tail_probability(tail: Any, raw: float) -> float:
    """Return P(X >= raw) by the past, in (0, 1]."""
    place = bin_of(raw)
    b = int(place)
    counts = tail.counts
    if b >= tail.tail_bin:
        u = edge_of(float(tail.tail_bin))
        y = (raw - u) / tail.sigma
        if abs(tail.xi) < 1e-6:
            beyond = math.exp(-y)
        else:
            base = 1.0 + tail.xi * y
            beyond = base ** (-1.0 / tail.xi) if base > 0.0 else 0.0
        return float((tail.tail_n + 0.5) / (tail.n + 1.0) * beyond)
    above = 0.0
    for i in range(b + 1, BINS):
        above += counts[i]
    above += counts[b] * (1.0 - (place - b))
    return float((above + 0.5) / (tail.n + 1.0))


@compiled
def learn(tail: Any, raw: float) -> None:
    """Count a raw score."""
    counts = tail.counts
    if tail.n >= HORIZON:
        total = 0
        for i in range(BINS):
            counts[i] >>= 1
            total += counts[i]
        tail.n = total
        fit_tail(tail)
    b = int(bin_of(raw))
    counts[b] += 1
    tail.n += 1
    # the fit moves with the tail; and the tail begins elsewhere as the body grows
    if b >= tail.tail_bin or tail.tail_n == 0 or tail.n & 63 == 0:
        fit_tail(tail)


@compiled
def learn_counts(tail: Any, more: Any) -> None:
    """Count many raw scores: uint16 [BINS], by bin."""
    counts = tail.counts
    added = 0
    for i in range(BINS):
        added += more[i]
    if added == 0:
        return
    # a block is never more than a quarter of the horizon
    less = 0
    while added >> less > HORIZON // 4:
        less += 1
    halve = 1 if tail.n >= HORIZON else 0
    total = 0
    for i in range(BINS):
        counts[i] = (counts[i] >> halve) + (more[i] >> less)
        total += counts[i]
    tail.n = total
    fit_tail(tail)


@compiled
def rarity(tail: Any, raw: float) -> float:
    """Return the surprise of a raw score in decades, from 0 to MOST; nothing is counted.

    Args:
        tail: a record of `TAIL`.
        raw: larger is stranger, from 0.
    """
    if tail.n < WARMUP:
        return 0.0
    decades = -math.log10(max(tail_probability(tail, raw), 10.0**-MOST))
    return float(min(max(decades, 0.0), math.log10(tail.n) + BEYOND))


@compiled
def surprise(tail: Any, raw: float) -> float:
    """Return the surprise of a raw score in decades, from 0 to MOST, and count it; NaN gives NaN.

    Args:
        tail: a record of `TAIL`, changed.
        raw: larger is stranger, from 0, or NOT_YET.
    """
    if raw != raw:
        return math.nan
    if raw < 0.0:
        return 0.0
    decades = rarity(tail, raw)
    learn(tail, raw)
    return decades


@compiled
def _calibrate(tails: Any, rows: RowArray, raw: FloatArray, out: FloatArray) -> None:
    for i in range(rows.shape[0]):
        for j in range(raw.shape[1]):
            out[i, j] = surprise(tails[rows[i], j], raw[i, j])


def calibrate(tails: Any, rows: RowArray, raw: FloatArray) -> FloatArray:
    """Turn raw scores into surprises, reading by reading, each by the past before it.

    Args:
        tails: structured [sensors, k] of `TAIL`, changed in place.
        rows: int32 [n], the sensor of each reading.
        raw: float64 [n, k], larger is stranger, from 0; NOT_YET in warm-up, NaN where there is none.

    Returns:
        float64 [n, k], decades: -log10 of the tail probability; 0 in warm-up, NaN where raw is NaN.
    """
    out = np.empty_like(raw)
    _calibrate(tails, rows, raw, out)
    return out
