from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from numpy.typing import NDArray

import anomaly.detectors.bocpd
from anomaly import BadDetector, build_detector

Array = NDArray[np.float64]


def score(x: Array, **config: object) -> Array:
    detector = build_detector({"type": "bocpd", **config}, ["a"])
    rows, ts = np.zeros(len(x), np.int32), np.arange(float(len(x)))
    return detector.score(detector.init(1), rows, x[:, None], ts)[:, 0]


def reference(x: Array, run: float, recent: int) -> Array:
    """Adams and MacKay with exact densities, 10 runs kept, on what the detector takes as usual."""
    mean, var, cov, last = x[0], 0.0, 0.0, 0.0
    weight, length, m, kappa, alpha, beta = (np.empty(0) for _ in range(6))
    scores = np.zeros(len(x))
    for n, value in enumerate(x):
        sd = math.sqrt(var)
        if n >= 100:
            rho = max(cov / var, 0.0)
            worth = (1 - rho) / (1 + rho)
            hazard = worth / run if len(weight) else 1.0
            if len(weight) == 10:
                held = weight.copy()
                long = np.flatnonzero(length > recent)
                if len(long):
                    held[long[np.argmax(held[long])]] = 2
                keep = np.delete(np.arange(10), np.argmin(held))
                weight, length, m, kappa, alpha, beta = (
                    a[keep] for a in (weight, length, m, kappa, alpha, beta)
                )
            weight = np.append(weight * (1 - hazard), hazard)
            length, m = np.append(length, 0.0), np.append(m, mean)
            kappa, alpha, beta = np.append(kappa, 0.05), np.append(alpha, 0.5), np.append(beta, 0.5 * var)
            d = value - m
            gamma = np.array([math.lgamma(a + 0.5) - math.lgamma(a) for a in alpha])
            width = 2 * beta * (kappa + 1) / kappa
            t = 0.99 * np.exp(gamma) / np.sqrt(np.pi * width) * (1 + d * d / width) ** (-alpha - 0.5)
            p = t + 0.01 / (np.pi * 10 * sd * (1 + ((value - mean) / (10 * sd)) ** 2))
            weight = weight * p**worth
            weight /= weight.sum()
            length = length + worth
            share = worth * t / p
            alpha, beta = alpha + share / 2, beta + share / 2 * kappa / (kappa + share) * d * d
            m, kappa = m + share * d / (kappa + share), kappa + share
            if n >= 300:
                scores[n] = -math.log10(weight[length > recent].sum())
        e = value - mean
        if n >= 100:
            e = np.clip(e, -4 * sd, 4 * sd)
        w = 1 / min(n + 1, 500)
        mean += w * e
        cov += w * (e * last - cov)
        var += w * (e * e - var)
        last = e
    return scores


def test_scores_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(50, 1, 1000)
    x[450] += 20
    x[600:] += 1.5
    x[850:] = 51.5 + rng.normal(0, 3, 150)
    # nothing reaches 15 decades: then what is usual is learned all the time
    found, expected = score(x, run=100, recent=30, once_in=1e15), reference(x, 100, 30)
    assert expected.max() > 3
    # the ratio of gamma functions is within 2%
    np.testing.assert_allclose(found, expected, atol=0.1)


@pytest.mark.parametrize("size", [-2.0, 2.0, 50.0])
def test_each_shift_is_found_soon_and_told_until_it_is_old(size: float) -> None:
    x = np.random.default_rng(1).normal(50, 1, 6000)
    for begin in (2000, 3000, 5000):
        x[begin:] += size
    found = np.flatnonzero(score(x) >= 4)
    for begin in (2000, 3000, 5000):
        mine = found[(found >= begin) & (found < begin + 200)]
        assert mine[0] <= begin + 25
        assert mine[-1] <= begin + 60
    assert len(found) <= 150


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_change_of_spread_is_found(factor: float) -> None:
    found = 0
    for seed in range(10):
        x = np.random.default_rng(seed).normal(0, 1, 2000)
        x[1500:] *= factor
        scores = score(50 + x)
        assert (scores[:1500] < 4).all()
        found += bool((scores[1500:1560] >= 4).any())
    assert found >= 8


def test_the_words_say_what_it_was_and_what_it_is() -> None:
    x = np.random.default_rng(3).normal(50, 1, 3000)
    x[2000:] = np.random.default_rng(4).normal(60, 3, 1000)
    detector = build_detector({"type": "bocpd"}, ["a"])
    rows, ts = np.zeros(3000, np.int32), 10 * np.arange(3000.0)
    scores, explain = detector.examine(detector.init(1), rows, x[:, None], ts)
    assert scores[2025, 0] >= 4
    text = explain(2025, 0)
    words = text.replace(",", "").split()
    assert [float(words[i]) for i in (2, 4, 6, 8)] == pytest.approx([50, 1, 60, 3], rel=0.3)
    assert float(words[9]) == pytest.approx(250, abs=20)
    assert text.startswith("changed from")
    assert explain(1900, 0).startswith("no clear change from 50")


def test_noise_of_many_kinds_gives_no_alarm() -> None:
    rng = np.random.default_rng(5)
    t, e = np.arange(20_000), rng.normal(0, 1, 20_000)
    for x in (
        e,
        rng.standard_t(3, 20_000),
        rng.poisson(2, 20_000),
        5 * np.sin(t / 46) + e,
        0.002 * t + e,
        np.cumsum(e),
        np.full(20_000, 7.0),
    ):
        assert (score(50.0 + x) < 4).all()


def test_spikes_are_no_changes() -> None:
    x = np.random.default_rng(6).normal(50, 1, 4000)
    x[1000::100] += 30
    x[3050], x[3051] = -1e9, 80
    assert (score(x) < 4).all()


def test_a_sensor_that_stood_still_and_begins_to_move_is_found_once() -> None:
    x = np.full(6000, 21.0)
    x[3000:] += np.random.default_rng(8).normal(0, 1, 3000)
    found = np.flatnonzero(score(x) >= 4)
    assert len(found)
    assert found[0] >= 3000
    assert found[-1] < 3800


def test_bad_settings_are_told() -> None:
    with pytest.raises(BadDetector) as caught:
        build_detector({"type": "bocpd", "warmup": 99, "run": 1, "recent": 0}, ["a"])
    assert {fault.path for fault in caught.value.faults} == {"warmup", "run", "recent"}


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(anomaly.detectors.bocpd).failed == 0
