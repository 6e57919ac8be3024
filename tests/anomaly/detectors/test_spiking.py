from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from numpy.typing import NDArray

import anomaly.detectors.spiking
from anomaly import BadDetector, build_detector

Array = NDArray[np.float64]


def score(x: Array, **config: object) -> Array:
    """Scores of one sensor, or of several: [n] or [n, sensors]."""
    detector = build_detector({"type": "spiking", **config}, ["a"])
    columns = x[:, None] if x.ndim == 1 else x
    n, sensors = columns.shape
    rows = np.tile(np.arange(sensors, dtype=np.int32), n)
    found = detector.score(
        detector.init(sensors), rows, columns.reshape(-1, 1), np.arange(float(n * sensors))
    )
    return found.reshape(x.shape)


def reference(x: Array, warmup: int, once_in: float) -> Array:
    """The definition, with one object a neuron pair and no wrapping counter."""
    last, usual = float(np.float32(x[0])), 0.0
    pairs = [{"tau": tau, "v": 0, "code": 0} for tau in (2, 8, 32)]
    scores = np.zeros(len(x))
    old = max(warmup, 256)
    sink = int(3 * once_in / 6)
    for n, value in enumerate(x[1:], 1):
        change, last = float(np.float32(value)) - last, float(np.float32(value))
        scaled = float(np.clip(change / usual, -64, 64)) if usual > 0 else 64.0
        size = min(abs(change), 8 * usual) if n >= warmup else abs(change)
        usual = float(np.float32(usual + (size - usual) / min(n, 256)))
        for pair in pairs:
            v = pair["v"] + scaled * 128 - pair["v"] / pair["tau"]
            if warmup // 2 <= n < warmup and v != 0:
                pair["code"] = max(pair["code"], math.ceil(16 * math.log2(abs(v))))
            if n == warmup:
                pair["code"] += 10
            limit = 2 ** (pair["code"] / 16)
            if n >= warmup:
                scores[n] = max(scores[n], math.log10(once_in) * min(abs(v) / limit, 4))
                if abs(v) >= limit:
                    v -= math.copysign(limit, v)
                    pair["code"] += 6
                elif n >= old + sink and (n - old) % sink == 0:
                    pair["code"] -= 1
            pair["v"] = math.floor(v + 0.5)
    return scores


def test_scores_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    x = 50 + np.cumsum(rng.normal(0, 0.1, 3000)) + rng.normal(0, 1, 3000)
    x[1000] += 10
    x[2000:] -= 8
    found = score(x, once_in=100)
    assert (found >= 2).sum() > 10
    np.testing.assert_allclose(found, reference(x, 200, 100), rtol=1e-12)


def test_it_is_smaller_than_all_others_that_learn() -> None:
    assert build_detector({"type": "spiking"}, ["a"]).dtype.itemsize == 19


@pytest.mark.parametrize("once_in", [300.0, 10_000.0])
def test_alarms_come_about_as_rarely_as_they_should(once_in: float) -> None:
    rng = np.random.default_rng(1)
    n, sensors = 20_000, 20
    t, e = np.arange(n)[:, None], rng.normal(0, 1, (n, sensors))
    shapes = [
        e,
        rng.standard_t(3, (n, sensors)),
        rng.poisson(4, (n, sensors)),
        5 * np.sin(t / 46) + e,
        0.002 * t + e,
        np.cumsum(e, 0),
        np.cumsum(e, 0) // 4,
    ]
    for x in shapes:
        share = (score(50.0 + x, once_in=once_in)[1000:] >= math.log10(once_in)).mean()
        assert 0.1 < share * once_in < 3.5


def test_a_spike_a_jump_and_a_ramp_are_found_and_the_second_one_too() -> None:
    x = np.random.default_rng(2).normal(50, 1, (14_000, 3))
    for begin in (3000, 12_000):
        x[begin, 0] += 10
        x[begin:, 1] += 10
        x[begin : begin + 30, 2] += np.arange(30)
    found = score(x) >= 4
    for begin in (3000, 12_000):
        assert found[begin, :2].all()
        assert found[begin : begin + 40, 2].any()


def test_a_huge_spike_does_not_blind_it_for_long() -> None:
    x = np.random.default_rng(3).normal(50, 1, 4000)
    x[2000] = 1e150
    x[2200] += 15
    found = np.flatnonzero(score(x) >= 4)
    assert 2000 in found
    assert 2200 in found
    assert not ((found > 2010) & (found < 2200)).any()


def test_a_value_that_never_moved_and_moves_is_strange() -> None:
    x = np.full(3000, 7.0)
    assert not score(x).any()
    x[2000] = 7.5
    assert np.flatnonzero(score(x) >= 4).tolist()[0] == 2000


def test_bad_settings_are_told() -> None:
    with pytest.raises(BadDetector) as caught:
        build_detector({"type": "spiking", "once_in": 1e6, "warmup": 20_000}, ["a"])
    assert {fault.path for fault in caught.value.faults} == {"once_in", "warmup"}


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(anomaly.detectors.spiking).failed == 0
