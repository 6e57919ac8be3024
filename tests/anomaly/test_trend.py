"""The trend against plain references: least squares, the first passage of simulated walks, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.trend import MODELS, SHARES, level_of, passage, step, trend_dtype, weigh, when


def learn(series: NDArray[np.float64], banks: int = 1) -> np.ndarray:
    trend = np.zeros(1, trend_dtype(banks))
    for z in series.tolist():
        step(trend[0], z, 1.0)
    return trend


def walk(rng: np.random.Generator, n: int, share: float, drift: float) -> tuple[np.ndarray, np.ndarray]:
    """Level of a walk with drift, and what is seen of it, [n] each; the two variances add to 1."""
    level = np.cumsum(drift + math.sqrt(share) * rng.normal(size=n))
    return level, level + math.sqrt(1 - share) * rng.normal(size=n)


def test_the_filter_without_wandering_is_weighted_least_squares() -> None:
    rng = np.random.default_rng(1)
    n = 200
    series = 5 + 0.3 * np.arange(n) + rng.normal(size=n)
    trend = learn(series)[0]
    x, w = np.arange(n) - (n - 1.0), (1 - 1 / 64) ** (n - 1.0 - np.arange(n))
    slope, level = np.polyfit(x, series, 1, w=np.sqrt(w))
    assert trend["slope"][0] == pytest.approx(slope, rel=0.02)
    assert trend["level"][0] == pytest.approx(level, rel=0.02)


@pytest.mark.parametrize(("slope", "p22", "q"), [(0.5, 0.0, 1.0), (0.3, 0.02, 0.5), (-0.1, 0.01, 1.0)])
def test_the_passage_is_that_of_simulated_walks(slope: float, p22: float, q: float) -> None:
    rng = np.random.default_rng(2)
    runs, gap, fine = 4000, 6.0, 0.02
    for t in (5.0, 15.0):
        slopes = slope + math.sqrt(p22) * rng.normal(size=(runs, 1))
        steps = slopes * fine + math.sqrt(q * fine) * rng.normal(size=(runs, int(t / fine)))
        reached = (np.cumsum(steps, axis=1).max(axis=1) >= gap).mean()
        # the walk is seen in steps, so it misses a few crossings
        assert passage(t, gap, slope, 0.0, 0.0, p22, q) == pytest.approx(reached, abs=0.03)


def test_the_passage_is_a_distribution_in_time() -> None:
    times = np.logspace(-3, 6, 400)
    for slope, p22, q in ((1.0, 1e-12, 1e-12), (-5.0, 1e-3, 1e-2), (1e-3, 10.0, 0.0), (3.0, 0.0, 1e9)):
        p = [passage(t, 2.0, slope, 1e-9, 0.0, p22, q) for t in times]
        assert (np.diff(p) >= -1e-9).all()
        assert all(0 <= x <= 1 for x in p)


@pytest.mark.parametrize("share", [0.02, 0.2, 1.0])
def test_eighty_percent_of_intervals_hold_the_truth(share: float) -> None:
    rng = np.random.default_rng(3)
    held = 0
    runs, past, drift = 200, 100, 0.5 * math.sqrt(share) + 0.05
    for _ in range(runs):
        level, seen = walk(rng, past + 1500, share, drift)
        trend, weights = learn(seen[:past])[0], np.empty(MODELS)
        bound = level[past - 1] + 40 * drift
        assert weigh(trend, weights)
        early, late = (when(trend, weights, bound, 1.0, p) for p in (0.1, 0.9))
        reached = np.flatnonzero(level[past:] >= bound)
        held += early <= (reached[0] + 1 if len(reached) else math.inf) <= late
    assert 0.7 <= held / runs <= 0.9


def test_exponential_growth_is_told_from_linear_growth() -> None:
    rng = np.random.default_rng(4)
    weights = np.empty(2 * MODELS)
    growing = np.exp(np.arange(100) / 25) * (1 + 0.02 * rng.normal(size=100))
    assert weigh(learn(growing, 2)[0], weights)
    assert weights[MODELS:].sum() > 0.95
    straight = 10 + np.arange(100) + rng.normal(size=100)
    assert weigh(learn(straight, 2)[0], weights)
    assert weights[MODELS:].sum() < 0.05


@pytest.mark.parametrize("value", [0.0, 7.0, -1e150, 1e-300])
def test_a_value_that_stands_still_or_is_extreme_stays_finite(value: float) -> None:
    series = np.full(60, value)
    series[30] = -value
    trend, weights = learn(series, 2)[0], np.empty(2 * MODELS)
    assert weigh(trend, weights)
    assert np.isfinite(weights).all()
    assert math.isfinite(level_of(trend, weights))
    assert len(SHARES) == MODELS
