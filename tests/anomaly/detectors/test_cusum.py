from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from numpy.typing import NDArray

import anomaly.detectors.cusum
from anomaly import BadDetector, build_detector

Array = NDArray[np.float64]


def score(x: Array, **config: object) -> Array:
    detector = build_detector({"type": "cusum", **config}, ["a"])
    rows, ts = np.zeros(len(x), np.int32), np.arange(float(len(x)))
    return detector.score(detector.init(1), rows, x[:, None], ts)[:, 0]


def ar(n: int, rho: float, seed: int) -> Array:
    e = np.random.default_rng(seed).normal(0, math.sqrt(1 - rho * rho), n)
    x = np.zeros(n)
    for t in range(1, n):
        x[t] = rho * x[t - 1] + e[t]
    return x


def reference(x: Array, memory: int, slack: float, h: float, warmup: int) -> Array:
    """The definition, up to the first alarm."""
    mean, var, cov, lag, last, up, down = x[0], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    scores = np.zeros(len(x))
    for t, value in enumerate(x):
        e = value - mean
        if t >= warmup:
            sd = math.sqrt(var)
            rho = max(cov / var, 0)
            z = np.clip((e - lag) / sd, -4, 4) * math.sqrt((1 - rho) / (1 + rho))
            up, down = max(0, up + z - slack), max(0, down - z - slack)
            scores[t] = 4 * max(up, down) / h
            if scores[t] >= 4:
                return scores[: t + 1]
            e = lag + np.clip(e - lag, -4 * sd, 4 * sd)
        w = 1 / min(t + 1, memory)
        mean += w * e
        e -= lag
        lag += e / min(t + 1, 8 * memory)
        cov += w * (e * last - cov)
        var += w * (e * e - var)
        last = e
    return scores


@pytest.mark.parametrize("rho", [-0.4, 0.0, 0.8])
def test_scores_are_those_of_the_definition(rho: float) -> None:
    x = 50 + 3 * ar(2000, rho, 0)
    x[::97] += 40
    x[1500:] += 15
    expected = reference(x, 300, 0.6, 12.0, 100)
    assert 1500 <= len(expected) <= 2000
    found = score(x, memory=300, slack=0.6, h=12.0, warmup=100)
    np.testing.assert_allclose(found[: len(expected)], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [-3.0, -1.0, 1.0, 3.0])
def test_a_shift_is_found_within_the_readings_that_it_takes_and_then_is_usual(size: float) -> None:
    x = np.random.default_rng(1).normal(50, 1, 5000)
    x[3000:] += size
    found = np.flatnonzero(score(x) >= 4)
    assert 3000 + 20 / 3.5 <= found[0] <= 3000 + 2 * 20 / (abs(size) - 0.5)
    assert found[-1] < found[0] + 30


def test_the_words_say_since_when_and_by_how_much() -> None:
    x = np.random.default_rng(2).normal(50, 1, 4000)
    x[3000:] += 2
    detector = build_detector({"type": "cusum"}, ["a"])
    scores, explain = detector.examine(
        detector.init(1), np.zeros(4000, np.int32), x[:, None], 10 * np.arange(4000.0)
    )
    at = int(np.flatnonzero(scores[:, 0] >= 4)[-1])
    found = explain(at, 0)
    words = found.split()
    assert found.startswith("level moved up by")
    assert float(words[4]) == pytest.approx(2, abs=0.3)
    readings = int(words[10])
    assert abs(at - readings + 1 - 3000) <= 3
    assert f"({10 * (readings - 1)} s)" in found


def test_noise_of_many_kinds_gives_no_alarm() -> None:
    rng = np.random.default_rng(3)
    t = np.arange(20_000)
    e = rng.normal(0, 1, 20_000)
    for x in (
        e,
        rng.standard_t(3, 20_000),
        rng.poisson(0.5, 20_000),
        5 * np.sin(t / 46) + e,
        0.002 * t + e,
        ar(20_000, 0.95, 4),
        np.cumsum(e),
        2 * np.round(ar(20_000, 0.97, 5)),
        np.full(20_000, 7.0),
    ):
        assert (score(50.0 + x) < 4).all()


def test_a_single_spike_is_no_shift() -> None:
    x = np.random.default_rng(6).normal(50, 1, 4000)
    x[2000] = 1e9
    x[3000] = -1e9
    assert (score(x) < 2).all()


def test_a_level_that_comes_back_is_told_until_it_is_back() -> None:
    x = np.random.default_rng(7).normal(50, 1, 4000)
    x[3000:3015] += 4
    found = np.flatnonzero(score(x, hold=500) >= 4)
    assert 3005 <= found[0] <= 3010
    assert found[-1] <= 3060


def test_a_sensor_that_stood_still_and_begins_to_move_is_told_for_a_while() -> None:
    x = np.full(6000, 21.0)
    x[3000:] += np.random.default_rng(8).normal(0, 1, 3000)
    found = np.flatnonzero(score(x) >= 4)
    assert 3000 <= found[0] < 3100
    assert found[-1] < 3400


def test_bad_settings_are_told() -> None:
    with pytest.raises(BadDetector) as caught:
        build_detector({"type": "cusum", "memory": 1, "slack": 0, "h": 0, "hold": 0}, ["a"])
    assert {fault.path for fault in caught.value.faults} == {"memory", "slack", "h", "hold"}


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(anomaly.detectors.cusum).failed == 0
