from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from numpy.typing import NDArray

import anomaly.detectors.dropout
from anomaly import BadDetector, build_detector
from anomaly.detectors.lengths import LENGTHS, count_length, length_surprise

Array = NDArray[np.float64]


def score(x: Array, ts: Array | None = None, **config: object) -> Array:
    """The scores of one sensor, warm from the second reading on unless told otherwise."""
    detector = build_detector({"type": "dropout", "warmup": 1, **config}, ["a"])
    ts = 300.0 * np.arange(len(x)) if ts is None else ts
    return detector.score(detector.init(1), np.zeros(len(x), np.int32), x[:, None], ts)[:, 0]


def noise(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(50, 1, n)


def test_the_score_of_a_gap_is_its_surprise_among_gaps_in_usual_ones() -> None:
    gaps = np.random.default_rng(0).exponential(10, 1200)
    ts = np.cumsum(gaps)
    past, usual, expected = np.zeros(1, LENGTHS)[0], 0.0, [0.0]
    for n, gap in enumerate(gaps[1:].tolist(), 1):
        length = gap / usual if n > 1 else 0.0
        decades = float(length_surprise(past, length)) if length >= 3 else 0.0
        expected.append(decades)
        if n > 1:
            count_length(past, length, 0.1 ** min(max(decades / 4 - 1, 0), 1))
        usual += (min(gap, 10 * usual) - usual) / min(n, 500) if n > 1 else gap
    assert max(expected) > 3
    np.testing.assert_allclose(score(np.full(1200, 5.0), ts)[1:], expected[1:], rtol=1e-6)


@pytest.mark.parametrize("interval", [1e-3, 1.0, 3600.0])
def test_a_gap_of_a_regular_sensor_is_found_and_lateness_is_not(interval: float) -> None:
    rng = np.random.default_rng(1)
    ts = interval * (np.arange(3000) + rng.uniform(-0.3, 0.3, 3000))
    ts[2000:] += 4 * interval
    scores = score(noise(3000), ts)
    assert scores[2000] >= 4
    assert (np.delete(scores, 2000) < 4).all()


def test_readings_that_come_at_random_have_gaps_and_no_dropouts() -> None:
    ts = np.cumsum(np.random.default_rng(2).exponential(10, 50_000))
    assert (score(noise(50_000), ts)[100:] >= 4).sum() <= 15
    ts[40_000:] += 1000
    assert score(noise(50_000), ts)[40_000] >= 4


def test_batches_have_no_dropouts_between_them() -> None:
    ts = np.repeat(60.0 * np.arange(200), 50) + np.tile(0.01 * np.arange(50), 200)
    assert (score(noise(10_000), ts, warmup=100) < 4).all()


def test_a_field_that_was_missing_for_a_while_is_a_dropout_of_that_field() -> None:
    x = noise(1000)
    x[900:910] = math.nan
    scores = score(x)
    assert scores[910] >= 4
    assert np.flatnonzero(scores >= 4).tolist() == [910]


def test_late_readings_are_no_gap_and_a_clock_set_back_is_followed() -> None:
    ts = 300.0 * np.arange(3000)
    ts[1000::7] -= 4000
    assert (score(noise(3000), ts) < 4).all()
    ts = 300.0 * np.arange(3000)
    ts[1500:] -= 1e6
    ts[2000:] += 3000
    assert np.flatnonzero(score(noise(3000), ts) >= 4).tolist() == [2000]


def test_a_new_pace_is_usual_after_some_readings() -> None:
    ts = np.cumsum(np.where(np.arange(6000) < 3000, 1.0, 60.0))
    found = np.flatnonzero(score(noise(6000), ts) >= 4)
    assert found[0] == 3000
    assert found[-1] < 3030


@pytest.mark.parametrize("sentinel", [0.0, -1.0, -999.0])
def test_a_value_at_a_sentinel_is_found_as_long_as_it_stays_there_each_time(sentinel: float) -> None:
    x = noise(10_000)
    falls = [slice(b, b + 5) for b in (3000, 5000, 9000)]
    for fall in falls:
        x[fall] = sentinel
    expected = np.zeros(10_000, bool)
    for fall in falls:
        expected[fall] = True
    np.testing.assert_array_equal(score(x) >= 4, expected)


def test_a_sentinel_that_nobody_named_is_found_once_it_was_met_or_stays() -> None:
    x = noise(6000)
    x[3000:3004] = x[5000:5002] = -3276.8
    assert np.flatnonzero(score(x) >= 4).tolist() == [3001, 3002, 3003, 5000, 5001]
    x[3000] = noise(1)[0]
    assert score(x, sentinels=[-3276.8])[3001] >= 4


def test_a_step_to_another_value_is_no_dropout() -> None:
    x = noise(4000)
    x[2000] = 3.0
    x[3000:] += 80
    assert not score(x)[100:].any()


def test_zero_is_no_sentinel_where_values_pass_it_or_rest_there() -> None:
    rng = np.random.default_rng(4)
    around = np.round(rng.normal(0, 2, 20_000), 1)
    counts = rng.poisson(3, 20_000).astype(float)
    nights = np.where(np.arange(20_000) % 288 < 96, 0.0, noise(20_000))
    switch = np.repeat(np.arange(100.0) % 2, rng.geometric(0.005, 100))
    for x in (around, counts, switch):
        assert (score(x, warmup=100) < 4).all()
    # the first nights are strange, and those that last make themselves usual
    assert np.flatnonzero(score(nights, warmup=100) >= 4).max(initial=0) < 2 * 288


def test_values_that_stand_still_fall_too() -> None:
    x = np.full(3000, 21.5)
    x[500::100] = 21.6
    x[2950:2955] = 0
    assert np.flatnonzero(score(x) >= 4).tolist() == list(range(2950, 2955))


def test_bad_settings_are_told() -> None:
    with pytest.raises(BadDetector) as caught:
        build_detector({"type": "dropout", "at_least": 1, "sentinels": [math.inf]}, ["a"])
    assert {fault.path for fault in caught.value.faults} == {"at_least", "sentinels"}


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(anomaly.detectors.dropout).failed == 0
