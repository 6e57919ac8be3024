from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from numpy.typing import NDArray

import anomaly.detectors.ar
from anomaly import BadDetector, build_detector
from anomaly.detectors.ar import likelihood

Array = NDArray[np.float64]


def score(x: Array, **config: object) -> tuple[Array, Array]:
    """Raw scores and scores of one sensor."""
    detector = build_detector({"type": "ar", **config}, ["a"])
    rows, ts = np.zeros(len(x), np.int32), np.arange(float(len(x)))
    raw = detector.raw(detector.init(1), rows, x[:, None], ts)[0]  # type: ignore[attr-defined]
    return raw[:, 0], detector.score(detector.init(1), rows, x[:, None], ts)[:, 0]


def wave(n: int, seed: int = 0) -> Array:
    t = np.arange(n)
    return 20 + 5 * np.sin(t / 3) + np.random.default_rng(seed).normal(0, 0.3, n)


def reference(x: Array, short: int, warmup: int) -> Array:
    """The definition."""
    seen = np.minimum(np.arange(len(x)) + 1, 128)
    mean, spread = 0.0, 0.0
    model, cov, lags = np.zeros(9), 10 * np.eye(9), np.array([0.0] * 8 + [1.0])
    usual, var, cleaned = 0.0, 0.0, 0
    sizes, raw = [0.0] * short, np.full(len(x), -1.0)
    for n, value in enumerate(x):
        if n < 128:
            spread += (abs(value - mean) - spread) / seen[n]
            mean += (value - mean) / seen[n]
        u = (value - mean) / spread if spread > 0 else 0.0
        forecast = model @ lags
        residual = u - forecast
        sizes.append(abs(residual))
        if n >= warmup:
            z = (np.mean(sizes[-short:]) - usual) / math.sqrt(var)
            raw[n] = -math.log10(0.5 * math.erfc(min(z, 35) / math.sqrt(2)))
        if n >= 8:
            known = min(n - 7, 1000)
            size = min(abs(residual), usual + 6 * math.sqrt(var)) if known > 8 else abs(residual)
            d = size - usual
            usual += d / known
            var += (d * (size - usual) - var) / known
            within = 4 * math.sqrt(var + usual**2)
            cleaned = cleaned + 1 if abs(residual) > within and n >= warmup else 0
            if cleaned:
                sizes[-1] = within
            if 0 < cleaned <= 8:
                residual = math.copysign(within, residual)
                u = forecast + residual
            gain = cov @ lags / (0.998 + lags @ cov @ lags)
            model = model + gain * residual
            forget = 0.998 if np.trace(cov) < 1e4 else 1
            cov = (cov - np.outer(gain, lags @ cov)) / forget
        lags = np.array([u, *lags[:7], 1.0])
    return raw


@pytest.mark.parametrize("short", [1, 3])
def test_raw_scores_are_those_of_the_definition(short: int) -> None:
    x = wave(1500)
    x[700] += 2
    x[900:] += 4
    # 35 standard deviations are 268 decades, where erfc ends
    found = np.minimum(score(x, short=short)[0], likelihood(35.0))
    np.testing.assert_allclose(found, reference(x, short, 150), rtol=1e-3, atol=1e-9)


def test_the_likelihood_is_the_tail_of_the_normal_distribution() -> None:
    for z in (-3.0, 0.0, 2.0, 7.99, 8.01, 20.0, 37.0):
        assert likelihood(z) == pytest.approx(-math.log10(0.5 * math.erfc(z / math.sqrt(2))), rel=1e-3)
    assert likelihood(1e9) == likelihood(60.0)
    assert likelihood(-1e9) == 0


def test_a_value_that_the_last_ones_do_not_lead_to_is_strange_within_the_range() -> None:
    x = wave(6000)
    x[5000] = 20 + 5 * math.sin(5000 / 3 + math.pi / 2) * 0.5
    assert abs(x[5000] - wave(6000)[5000]) > 1.5
    assert score(x)[1][5000] >= 4
    assert (score(x)[1][1000:5000] >= 4).sum() <= 5


def test_a_changed_rhythm_is_strange_when_it_begins() -> None:
    t = np.arange(6000.0)
    phase = np.where(t < 5000, t / 3, 5000 / 3 + (t - 5000) / 1.5)
    x = 20 + 5 * np.sin(phase) + np.random.default_rng(1).normal(0, 0.3, 6000)
    assert score(x)[1][5000:5010].max() >= 4
    assert score(x)[1][5800:].max() < 4


def test_it_sees_again_soon_after_a_spike_and_after_a_new_level() -> None:
    x = wave(8000)
    x[5000] += 1000
    x[5010] += 4
    x[6000:] += 20
    x[6200] += 8
    raw, scores = score(x)
    usual = np.quantile(raw[1000:5000], 0.999)
    found = np.flatnonzero(scores[4990:6200] >= 4) + 4990
    # a new level takes some readings until it is foretold
    assert found.tolist() == [5000, *range(6000, found[-1] + 1)]
    assert found[-1] < 6010
    assert raw[5010] > 4 * usual
    assert np.median(raw[6030:6200]) < usual
    assert raw[6200] > 4 * np.quantile(raw[6030:6200], 0.9)


def test_noise_of_many_kinds_gives_few_alarms() -> None:
    rng = np.random.default_rng(3)
    t, e = np.arange(20_000), rng.normal(0, 1, 20_000)
    shapes = [
        e,
        rng.poisson(3, 20_000),
        5 * np.sin(t / 46) + e,
        0.01 * t + e,
        np.cumsum(e),
        np.cumsum(e) // 4,
    ]
    for x in shapes:
        assert (score(50.0 + x)[1][2000:] >= 4).sum() <= 18


def test_the_model_stays_sound_over_values_that_stand_still_or_explode() -> None:
    rng = np.random.default_rng(4)
    still, noise, growing = np.full(50_000, 7.0), rng.normal(7, 1, 2000), 1.2 ** np.arange(500.0)
    x = np.concatenate([still, noise, growing, still, wave(6000)])
    x[-100] += 8
    raw, scores = score(x)
    assert np.isfinite(raw).all()
    assert raw[-100] > 3 * raw[-2000:-100].max()
    assert (scores[-2000:-100] >= 4).sum() <= 3


def test_bad_settings_are_told() -> None:
    with pytest.raises(BadDetector) as caught:
        build_detector({"type": "ar", "warmup": 10, "short": 0}, ["a"])
    assert {fault.path for fault in caught.value.faults} == {"warmup", "short"}


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(anomaly.detectors.ar).failed == 0
