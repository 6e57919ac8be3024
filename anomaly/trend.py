"""Where a value is heading: a trend with its uncertainty, and when it reaches a bound.

The model is a level that moves on by a slope and wanders besides, seen through noise:

    level' = level + slope dt + N(0, q dt)        z = level + N(0, r)

How much of what is seen is wandering (q) and how much is noise (r) decides how sure a forecast can be,
and is not known. So filters with several ratios q : r run side by side (a line seen through noise at one
end, a random walk with drift at the other); each has its own scale, learned from its own one-step errors,
and a weight by how well it predicted of late. With `SHARES` twice, the second bank runs on log z:
exponential growth, weighed against the linear one by the same likelihood.

Each is a Kalman filter whose covariance is inflated at every step, so that the past fades with `MEMORY`
steps. A step far off the forecast is taken in only up to `CLIP` deviations. Time is counted in blocks.

The time until the level first reaches a bound at distance d, with slope ~ N(b, P) and wandering q, is
that of a Wiener process with random drift, in closed form:

    F(t) = Phi((b t - d) / s) + exp(2 b d / q + 2 P d^2 / q^2) Phi(-(2 P d t / q + b t + d) / s)
    s^2  = P t^2 + q t

to whose first term the uncertainty of the level is added. F of the whole bank is the mean by weight.

Sources: P. Harrison, C. Stevens, "Bayesian forecasting" (JRSS B 38, 1976), for filters side by side; G.
Whitmore, "Normal-gamma mixtures of inverse Gaussian distributions" (Scandinavian J. of Statistics 13,
1986), and X. Si et al., "A Wiener-process-based degradation model with a recursive filter algorithm for
remaining useful life estimation" (MSSP 35, 2013), for the first passage.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from anomaly.compiled import compiled

#: Shares of wandering in one step's variance, of the filters side by side.
SHARES: tuple[float, ...] = (0.0, 0.004, 0.02, 0.1, 0.4, 1.0)
MODELS = len(SHARES)
#: Steps that the past is remembered for.
MEMORY = 64.0
#: Steps before a bank says anything.
LEAST = 16
#: A step's error counts up to so many deviations.
CLIP = 4.0
#: Variance of the slope before anything is known, in variances of a step.
DIFFUSE = 100.0
#: No forecast goes beyond so many blocks.
FARTHEST = 1e6
_ROOT_2 = math.sqrt(2.0)


def trend_dtype(banks: int) -> np.dtype[Any]:
    """Return the type of a trend with 1 bank (linear) or 2 (linear and exponential); zero is never seen."""
    columns = ("level", "slope", "p11", "p12", "p22", "scale", "log_s")
    return np.dtype(
        [(name, "<f8", (banks * MODELS,)) for name in columns] + [("log_z", "<f8"), ("n", "<i4", (banks,))]
    )


@compiled
def step(trend: Any, z: float, dt: float) -> None:
    """Take in one step of the series.

    Args:
        trend: a record of `trend_dtype`, changed.
        z: the value, finite.
        dt: blocks since the step before, above 0.
    """
    fade = 1.0 - 1.0 / MEMORY
    fade = fade ** min(dt, 2.0 * MEMORY)
    for bank in range(trend.n.shape[0]):
        value = z
        if bank == 1:
            if z <= 0.0:
                trend.n[1] = 0
                continue
            value = math.log(z)
        n = trend.n[bank]
        weight = max(1.0 / MEMORY, 1.0 / max(n - 1.0, 1.0))
        # what keeps the arithmetic finite where a value stands still
        floor = 1e-18 * value * value + 1e-280
        if bank == 1:
            floor = 1e-18
            trend.log_z += max(1.0 / MEMORY, 1.0 / (n + 1.0)) * (value - trend.log_z) if n > 0 else value
        for share in range(MODELS):
            m = bank * MODELS + share
            noise = 1.0 - SHARES[share]
            if n == 0:
                trend.level[m] = value
                trend.slope[m] = 0.0
                trend.p11[m] = noise
                trend.p12[m] = 0.0
                trend.p22[m] = DIFFUSE
                trend.scale[m] = 0.0
                trend.log_s[m] = 0.0
                continue
            p22 = trend.p22[m]
            p12 = trend.p12[m] + dt * p22
            p11 = (trend.p11[m] + dt * (trend.p12[m] + p12)) / fade + SHARES[share] * dt
            p12 /= fade
            p22 /= fade
            expected = trend.level[m] + trend.slope[m] * dt
            total = p11 + noise
            error = value - expected
            if n >= 2:
                scale = trend.scale[m]
                if n >= LEAST // 2:
                    most = CLIP * math.sqrt(total * scale)
                    error = min(max(error, -most), most)
                trend.scale[m] += weight * (error * error / total - scale)
                trend.scale[m] = max(trend.scale[m], floor)
                trend.log_s[m] += weight * (math.log(total) - trend.log_s[m])
            gain, lift = p11 / total, p12 / total
            trend.level[m] = expected + gain * error
            trend.slope[m] += lift * error
            trend.p11[m] = p11 * (1.0 - gain)
            trend.p22[m] = p22 - lift * p12
            trend.p12[m] = p12 * (1.0 - gain)
        if n < 1 << 30:
            trend.n[bank] = n + 1


@compiled
def weigh(trend: Any, weights: Any) -> bool:
    """Fill the weight of each filter, [banks * MODELS]; tells whether there is enough to say anything."""
    if trend.n[0] < LEAST:
        return False
    best = -math.inf
    # half of what the likelihood says: it takes each filter's scale as known
    seen = 0.5 * min(trend.n[0] - 2.0, 2.0 * MEMORY)
    for m in range(weights.shape[0]):
        bank = m // MODELS
        weights[m] = -math.inf
        if trend.n[bank] >= LEAST:
            fit = -0.5 * (trend.log_s[m] + math.log(trend.scale[m]))
            if bank == 1:
                fit -= trend.log_z
            weights[m] = seen * fit
            best = max(best, weights[m])
    total = 0.0
    for m in range(weights.shape[0]):
        weights[m] = math.exp(weights[m] - best)
        total += weights[m]
    for m in range(weights.shape[0]):
        weights[m] /= total
    return True


@compiled
def passage(t: float, gap: float, slope: float, p11: float, p12: float, p22: float, q: float) -> float:
    """Return P(the bound is reached within t), see the module.

    Args:
        t: time ahead, above 0.
        gap: distance to the bound; 0 or less: reached.
        slope: towards the bound, its estimate.
        p11: variance of the level.
        p12: covariance of level and slope.
        p22: variance of the slope.
        q: variance of the wandering in one unit of time.
    """
    if gap <= 0.0:
        return 1.0
    moved = p22 * t * t + q * t
    spread = math.sqrt(max(moved + p11 + 2.0 * p12 * t, 1e-300))
    p = 0.5 * math.erfc((gap - slope * t) / spread / _ROOT_2)
    if q > 0.0:
        s = math.sqrt(moved)
        x = (slope * t - gap) / s
        u = (2.0 * p22 * gap * t / q + slope * t + gap) / s / _ROOT_2
        if u < 0.0:
            p += 0.5 * math.exp(2.0 * gap / q * (slope + p22 * gap / q)) * math.erfc(u)
        elif u < 25.0:
            p += 0.5 * math.exp(u * u - 0.5 * x * x) * math.erfc(u)
        else:
            p += 0.5 * math.exp(-0.5 * x * x) / (u * 1.7724538509055159)
    return float(min(p, 1.0))


@compiled
def reach(trend: Any, weights: Any, bound: float, upward: float, t: float) -> float:
    """Return P(the level reaches `bound` within t blocks), going up (`upward` 1) or down (-1)."""
    p = 0.0
    for m in range(weights.shape[0]):
        if weights[m] < 1e-6:
            continue
        if m < MODELS:
            gap = (bound - trend.level[m]) * upward
        elif bound > 0.0:
            gap = (math.log(bound) - trend.level[m]) * upward
        else:
            continue
        # a scale learned from few steps is too small, seen from the future
        n = trend.n[m // MODELS]
        scale = trend.scale[m] * (1.0 + 8.0 / n)
        p += weights[m] * passage(
            t,
            gap,
            trend.slope[m] * upward,
            trend.p11[m] * scale,
            trend.p12[m] * scale,
            trend.p22[m] * scale,
            SHARES[m % MODELS] * scale,
        )
    return p


@compiled
def when(trend: Any, weights: Any, bound: float, upward: float, p: float) -> float:
    """Return the blocks until the bound is reached with probability p; inf beyond FARTHEST."""
    low, high = math.log(1e-3), math.log(FARTHEST)
    if reach(trend, weights, bound, upward, FARTHEST) < p:
        return math.inf
    for _ in range(40):
        middle = 0.5 * (low + high)
        if reach(trend, weights, bound, upward, math.exp(middle)) < p:
            low = middle
        else:
            high = middle
    return math.exp(high)


@compiled
def significance(trend: Any, weights: Any) -> float:
    """Return the slope in its standard errors, the mean over the bank."""
    z = 0.0
    for m in range(weights.shape[0]):
        if weights[m] >= 1e-6:
            z += weights[m] * trend.slope[m] / math.sqrt(trend.p22[m] * trend.scale[m])
    return z


@compiled
def level_of(trend: Any, weights: Any) -> float:
    """Return the level, the mean over the bank."""
    level = 0.0
    for m in range(weights.shape[0]):
        if weights[m] >= 1e-6:
            level += weights[m] * (trend.level[m] if m < MODELS else math.exp(min(trend.level[m], 700.0)))
    return level


@compiled
def slope_of(trend: Any, weights: Any) -> float:
    """Return the slope a block, in the value's unit, the mean over the bank."""
    slope = 0.0
    for m in range(weights.shape[0]):
        if weights[m] >= 1e-6:
            factor = 1.0 if m < MODELS else math.exp(min(trend.level[m], 700.0))
            slope += weights[m] * trend.slope[m] * factor
    return slope


@compiled
def share_exponential(weights: Any) -> float:
    """Return the weight of the exponential bank, 0 to 1."""
    share = 0.0
    for m in range(MODELS, weights.shape[0]):
        share += weights[m]
    return share
