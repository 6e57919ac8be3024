from __future__ import annotations

import doctest

import numpy as np
from numpy.typing import NDArray

import anomaly.detectors.robust
from anomaly.detectors.robust import SAMPLE, RobustConfig, RobustDetector


def hashed(n: int) -> int:
    h = n & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


def reference(x: NDArray[np.float64], config: RobustConfig) -> NDArray[np.float64]:
    """The definition, on one sensor."""
    raw, sample = np.full(len(x), -1.0), np.empty(0)
    for n, value in enumerate(x):
        if n >= config.warmup:
            median = np.median(sample)
            deviation = np.abs(sample - median)
            scale = 1.4826 * np.median(deviation) or 1.2533 * deviation.mean()
            raw[n] = abs(value - median) / max(scale, 1e-6 * abs(median), 1e-100)
        if n < SAMPLE:
            sample = np.sort([*sample, value])
        elif hashed(2 * n) < (SAMPLE << 32) // config.horizon:
            sample = np.sort([*np.delete(sample, hashed(2 * n + 1) % SAMPLE), value])
    return raw


def score(x: NDArray[np.float64], **settings: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    detector = RobustDetector(RobustConfig(**settings), ("a",))  # type: ignore[arg-type]
    n = len(x)
    rows, ts = np.zeros(n, np.int32), np.arange(float(n))
    raw = detector.raw(detector.init(1), rows, x[:, None], ts)[0][:, 0]
    return raw, detector.score(detector.init(1), rows, x[:, None], ts)[:, 0]


def test_raw_scores_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    for x in (rng.normal(20, 2, 1500), np.round(rng.normal(0, 0.4, 1500)), np.full(300, 7.0)):
        config = RobustConfig(warmup=5, horizon=200)
        np.testing.assert_allclose(score(x, warmup=5, horizon=200)[0], reference(x, config), rtol=1e-9)


def test_a_spike_stands_out_and_noise_does_not() -> None:
    x = np.random.default_rng(1).normal(70, 3, 5000)
    x[4000] = 130
    scores = score(x)[1]
    assert scores[4000] > 4
    assert (np.delete(scores, 4000) >= 4).sum() <= 2


def test_a_third_of_spikes_does_not_blind_it() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(70, 1, 3000)
    x[rng.random(3000) < 0.33] = 500
    raw = score(x)[0]
    # beside a mean of 212 and a standard deviation of 202, no spike is beyond 1.5
    assert np.median(raw[1000:][x[1000:] == 500]) > 50


def test_the_level_is_followed_slowly() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, 8000)
    x[3000:] += 10
    raw = score(x, horizon=1000)[0]
    assert np.median(raw[3000:3200]) > 5
    assert np.median(raw[7000:]) < 1.5


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(anomaly.detectors.robust).failed == 0
